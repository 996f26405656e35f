"""A real MLflow store on SQLite, migrated once a session and copied for every test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from study.ledger import Ledger, create_store, default_tracking_uri


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    create_store(default_tracking_uri(folder))
    return folder / "mlflow.db"


@pytest.fixture
def tracking_uri(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)


@pytest.fixture
def ledger(tracking_uri: str, tmp_path: Path) -> Ledger:
    ledger = Ledger(tracking_uri, "demo")
    location = (tmp_path / "demo" / "artifacts").as_uri()
    ledger.open_study(fingerprint="f" * 64, spec={"objectives": {}}, tags={"a": "b"}, artifact_location=location)
    return ledger
