"""What a made-up study of an older version is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from study import metrics, names
from study.ledger import Ledger
from study.spec.study_spec import StudySpec
from study.storage.storage import Storage
from study.trial.trial import Trial

OLD_SCORES = {metrics.FAITHFULNESS.ledger_name: 99.0, "val/random_maps": 50.0}
SPEC: dict[str, Any] = {
    "objectives": {"accuracy": "maximize", "faithfulness": "maximize"},
    "space": {"lr": {"float": [0.01, 0.2]}},
    "fixed": {"network": "tiny", "batch_size": 50},
    "fidelity": {"max_epochs": 2, "rungs": [1]},
    "data": {"source": "shapes", "train_images": 100, "validation_images": 40},
    "evaluation": {"images": 12},
    "constraints": {"accuracy": {"min": 1}},
    "budget": {"trials": 5},
}
POINTS = (0.05, 0.06, 0.07, 0.08, 0.09)


@dataclass(frozen=True)
class Old:
    """``trained``: the network of every trial; the made-up study's ``spec``, ``storage`` and ``ledger``."""

    trained: Trial
    spec: StudySpec
    spec_file: Path
    storage: Storage
    ledger: Ledger

    @property
    def options(self) -> list[str]:
        return ["--storage", str(self.storage.local)]

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        url = f"sqlite:///{self.storage.local / 'k' / names.OPTUNA_FILE}"
        return optuna.load_study(study_name="k", storage=url).get_trials()
