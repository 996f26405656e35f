"""Connects to MLflow's store: creates it once, never by mistake, and does not wait for a server that is away."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from study.errors import InputError, LedgerError, StorageError
from study.ledger.credentials import offer
from study.ledger.tracking import first_line, locked, masked, probe, sqlite_path
from study.storage.atomic import move_into_place

# No telemetry, and nothing in the terminal beside the study's progress. The client's own retries are short, since the
# writer keeps a journal and tries again (study/ledger/writer.py).
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "-1",  # a write takes two connections: threads would wait for each other
}

_OBJECT_STORES = {"s3": "boto3", "gs": "google.cloud.storage"}  # scheme → what MLflow imports for it


def create_store(tracking_uri: str) -> None:
    """Make sure that the store exists and answers, before several processes open it.

    Processes that open a new SQLite store at the same time all run its migrations and fail. So it is created here,
    under a file lock and another name, and renamed when it is complete. Raises :class:`LedgerError` where a server does
    not answer within 5 s or the file is not an MLflow store, :class:`StorageError` where the folder is not writable.
    """
    path = sqlite_path(tracking_uri)
    if path is None:
        connect(tracking_uri)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(path.name + ".lock")):
            if not path.exists() or path.stat().st_size == 0:
                part = path.with_name(path.name + ".part")
                part.unlink(missing_ok=True)
                connect(f"sqlite:///{part}", create=True)
                move_into_place(part, path)
    except OSError as error:
        raise StorageError(
            f"ledger {path}: cannot be created ({error.strerror}); choose another --storage or --tracking-uri"
        ) from None
    connect(tracking_uri)


def check_artifact_store(location: str | None) -> None:
    """Raises :class:`LedgerError` where the package that MLflow needs for an object store is not installed.

    The first upload would fail without it, and a writer would take that for a ledger that is away and try for ever.
    """
    package = _OBJECT_STORES.get(urlsplit(location or "").scheme)
    if package and find_spec(package.partition(".")[0]) is None:
        install = package.replace(".", "-")
        raise LedgerError(f"artifacts in {location}: MLflow needs {install} for it; pip install {install}")


def connect(tracking_uri: str, *, create: bool = False) -> Any:
    """An ``MlflowClient`` whose store is known to answer; ``create`` allows a new SQLite file.

    Raises :class:`LedgerError` where the store does not answer or is not one of MLflow's, :class:`InputError` where it
    does not exist.
    """
    scheme = urlsplit(tracking_uri).scheme
    if scheme in ("", "file"):
        raise InputError(
            f"tracking URI {tracking_uri!r}: MLflow has no file store any more; use sqlite:///PATH/mlflow.db"
        )
    if scheme in ("http", "https"):
        probe(tracking_uri)
    path = sqlite_path(tracking_uri)
    if not create and path is not None and not path.exists():  # MLflow would create it
        raise InputError(f"ledger {path}: there is none; check --storage or --tracking-uri, or start a study first")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    offer(tracking_uri)
    from mlflow import MlflowClient

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise LedgerError(
            f"ledger {masked(tracking_uri)}: MLflow cannot open it ({first_line(error)}); "
            "check --tracking-uri, or move the file away to start a new ledger"
        ) from None
    return client


def studies(tracking_uri: str) -> dict[str, str]:
    """Name and MLflow's experiment id of every study, the newest first. Raises as :func:`connect` does."""
    found = connect(tracking_uri).search_experiments(order_by=["creation_time DESC"])
    return {e.name: e.experiment_id for e in found if e.name != "Default"}
