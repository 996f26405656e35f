"""Small real ledgers to analyse: MLflow on SQLite, migrated once a session and copied for every test."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_studies import MakeStudy

from study import names
from study.ledger import Ledger, create_store, default_tracking_uri


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    create_store(default_tracking_uri(folder))
    return folder / "mlflow.db"


@pytest.fixture
def storage(empty_store: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture
def make_study(storage: Path) -> MakeStudy:
    """Write a study: one row per trial, (state, params, ledger metrics, files); of other configurations by default."""

    def make(
        rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, float], Sequence[Path]]],
        objectives: Mapping[str, str] | None = None,
        scalarize: Mapping[str, float] | None = None,
        name: str = "demo",
        constraints: Mapping[str, Mapping[str, float]] | None = None,
    ) -> Ledger:
        ledger = Ledger(default_tracking_uri(storage), name)
        spec = {
            "objectives": objectives or {"accuracy": "maximize", "faithfulness": "maximize"},
            "scalarize": scalarize,
            "constraints": constraints or {},
        }
        location = (storage / name / "artifacts").as_uri()
        ledger.open_study(fingerprint="f" * 64, spec=spec, tags={}, artifact_location=location)
        for trial, (state, params, scores, files) in enumerate(rows):
            run = ledger.open_trial(trial, 0, {"network": "tiny", "seed": 0, "lr": 0.1 + trial / 1000, **params}, {})
            run.sync([{"epoch": 1, **scores}])
            if state != names.RUNNING:
                run.finish(state, reason="" if state == names.COMPLETE else "because", files=files)
        return ledger

    return make
