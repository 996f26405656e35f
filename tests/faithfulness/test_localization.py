"""Localisation, the centre map, and the statistics of per-image scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from study.faithfulness.localization import centre_map, localization
from study.faithfulness.protocols import PROTOCOLS
from study.faithfulness.statistics import mean_with_interval, standard_error


def test_localization_by_hand() -> None:
    """2x2 maps on 2x2 images: all on the object, a quarter of it there, equal places, nowhere."""
    maps = torch.tensor([[[1.0, 0], [0, 0]], [[1, 3], [0, 0]], [[5, 5], [0, 0]], [[2, 2], [2, 2]]])
    truth = torch.zeros(4, 2, 2, dtype=torch.bool)
    truth[:, 0, 0] = True
    found = localization(maps, truth)
    assert found["pointing_game"][:3].tolist() == [100, 0, 100]  # the first of equal places
    assert found["energy_in_mask"][:3].tolist() == pytest.approx([100, 25, 50])
    assert found["pointing_game"][3].isnan() and found["energy_in_mask"][3].isnan()


def test_the_centre_map_is_symmetric_and_highest_in_the_middle() -> None:
    centre = centre_map((5, 7))[0]
    assert torch.equal(centre, centre.flip(0)) and torch.equal(centre, centre.flip(1))
    assert centre.argmax() == 2 * 7 + 3


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        d = mean_with_interval(rng.normal(1.0, 2.0, 60))
        covered += d.low <= 1.0 <= d.high
    assert 87 <= covered <= 100
    assert math.isnan(mean_with_interval(np.array([1.0, math.nan])).mean)
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0) and math.isnan(standard_error(np.ones(1)))


def test_dense_curves_are_those_of_small_steps() -> None:
    protocol = PROTOCOLS["dense"]
    assert protocol.step_pixels(32) == 8 and protocol.step_pixels(1) == 1
