"""MLflow's store: made once, opened only where it is, and not waited for when it is away."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from study.errors import InputError, LedgerError, StorageError
from study.ledger.credentials import offer
from study.ledger.tracking import first_line, locked, probe, shown, sqlite_path

# A study is nobody's telemetry, and its terminal belongs to its own progress. The client's own retries are short:
# whoever writes keeps a journal and tries again (study/ledger/book.py).
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "-1",  # a write takes two connections: threads would wait for each other
}

_OBJECT_STORES = {"s3": "boto3", "gs": "google.cloud.storage"}  # scheme -> what MLflow imports for it


def create_store(tracking_uri: str) -> None:
    """Make sure that the store exists and answers, before several processes open it.

    Processes that open a SQLite store that does not exist yet race through its migrations and fail. So it is made
    here, under a file lock, beside its place, and renamed into it: a kill midway leaves no half-made store. Raises
    :class:`LedgerError` where no server answers within 5 s or it is no MLflow store, :class:`StorageError` where the
    folder cannot be written.
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
                connect(f"sqlite:///{part}")
                os.replace(part, path)
    except OSError as error:
        raise StorageError(
            f"ledger {path}: cannot be created ({error.strerror}); choose another --storage or --tracking-uri"
        ) from None
    connect(tracking_uri)


def check_artifact_store(location: str | None) -> None:
    """Raises :class:`LedgerError` where MLflow's way to an object store is not installed.

    Without it the first upload would fail, which to a worker looks like a ledger that is away: it would wait for ever.
    """
    package = _OBJECT_STORES.get(urlsplit(location or "").scheme)
    if package and find_spec(package.partition(".")[0]) is None:
        install = package.replace(".", "-")
        raise LedgerError(f"artifacts in {location}: MLflow needs {install} for it; pip install {install}")


def connect(tracking_uri: str) -> Any:
    """An ``MlflowClient`` whose store is known to answer. Raises :class:`LedgerError`, and
    :class:`InputError` for a URI at which there is no store.
    """
    scheme = urlsplit(tracking_uri).scheme
    if scheme in ("", "file"):
        raise InputError(
            f"tracking URI {tracking_uri!r}: MLflow has no file store any more; use sqlite:///PATH/mlflow.db"
        )
    if scheme in ("http", "https"):
        probe(tracking_uri)
    path = sqlite_path(tracking_uri)
    if path is not None and path.suffix != ".part" and not path.exists():  # MLflow would create it
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
            f"ledger {shown(tracking_uri)}: MLflow cannot open it ({first_line(error)}); "
            "check --tracking-uri, or move the file away to start a new ledger"
        ) from None
    return client


def studies(tracking_uri: str) -> dict[str, str]:
    """Name and MLflow's experiment id of every study, the newest first. Raises as :func:`connect` does."""
    found = connect(tracking_uri).search_experiments(order_by=["creation_time DESC"])
    return {e.name: e.experiment_id for e in found if e.name != "Default"}
