"""A small study for tests of the search: its specification, and Optuna's storage as it stands on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from study.spec.study_spec import StudySpec


def make_spec(**changes: Any) -> StudySpec:
    values: dict[str, Any] = {
        "objectives": {"accuracy": "maximize", "faithfulness": "maximize"},
        "space": {
            "network": {"choice": ["tiny", "small"]},
            "lr": {"float": [0.01, 1.0], "log": True},
            "reg_weight": {"float": [1e-3, 10], "log": True, "zero": True},
            "reg_error": {"choice": ["cosine", "mse"], "when": "reg_weight > 0"},
        },
        "fidelity": {"max_epochs": 4},
        "budget": {"trials": 5},
    }
    return StudySpec.model_validate({**values, **changes})


def optuna_study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder / 'optuna.db'}")
