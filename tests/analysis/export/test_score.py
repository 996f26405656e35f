"""The temperature at which an exported network is scored: its card's, or fitted where a card has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.export.fetch import Proven
from analysis.export.score import temperature_of
from study.config import TrialConfig
from study.data import open_dataset
from study.training.checkpoint import load_model

Trained = tuple[list[Path], dict[str, float]]


def proven(trained: Trained, config: TrialConfig, **changes: Any) -> Proven:
    network, card = load_model(trained[0][0].parent)
    return Proven(0, trained[0][0].parent, network, {**card, **changes}, config, open_dataset(config.data), 0.0)


def test_the_cards_temperature_is_taken(trained: Trained, config: TrialConfig) -> None:
    assert temperature_of(proven(trained, config, temperature=1.75)) == 1.75


@pytest.mark.parametrize("value", [None, 0.0, -1.0, float("nan"), "2", True])
def test_without_one_it_is_fitted_as_the_trial_did(trained: Trained, config: TrialConfig, value: object) -> None:
    found = temperature_of(proven(trained, config, temperature=value))
    assert found == pytest.approx(trained[1]["val/temperature"], rel=1e-4)
