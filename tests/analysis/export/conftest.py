"""A study with a real, very short training in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_studies import MakeStudy

from study import names
from study.config import DataConfig, EvaluationConfig, TrialConfig
from study.ledger import Ledger

CONFIG = TrialConfig(
    network="tiny",
    epochs=1,
    lr=0.05,
    data=DataConfig(train_images=64, validation_images=40),
    evaluation=EvaluationConfig(methods=("grad_cam",), images=20),
)
Trained = tuple[list[Path], dict[str, float]]


@pytest.fixture(scope="session")
def config() -> TrialConfig:
    return CONFIG


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Files and scores of a real, very short training."""
    from study.trial.trial import Trial

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trial")
    trial = Trial(CONFIG, folder, device=torch.device("cpu"))
    trial.step()
    return trial.export(folder), trial.history[-1]


@pytest.fixture
def study(make_study: MakeStudy, trained: Trained) -> Ledger:
    """Trial 0 is its front; trial 1 was stopped."""
    files, scores = trained
    return make_study([(names.COMPLETE, CONFIG.to_dict(), scores, files), (names.STOPPED, {}, {}, [])])
