"""Gathering scores from batches and workers; localisation against known truth; intervals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from study.config import EvaluationConfig
from study.errors import InputError
from study.faithfulness import evaluate_faithfulness
from study.faithfulness.accumulate import ImageScores
from study.faithfulness.localization import centre_map, localization
from study.faithfulness.protocols import PROTOCOLS
from study.faithfulness.statistics import mean_with_interval, standard_error
from study.metrics import CENTRE_MAPS, LOCALIZATION, METHODS, PARTS, RANDOM_MAPS
from study.networks import build


def columns(*values: float) -> dict[str, torch.Tensor]:
    return {"a/insertion": torch.tensor(values), "a/undefined": torch.tensor([v > 2 for v in values])}


def test_batches_and_workers_add_up_to_the_whole() -> None:
    whole, first, second = (ImageScores(PROTOCOLS["paper"]) for _ in range(3))
    whole.update(columns(1.0, 2.0, 4.0, 5.0))
    first.update(columns(1.0))
    first.update(columns(2.0))
    second.update(columns(4.0, 5.0))
    first.merge_state([second, ImageScores(PROTOCOLS["paper"])])
    assert len(first) == len(whole) == 4
    assert first.compute() == whole.compute() == {"a/insertion": 3.0, "a/undefined": 2.0}
    assert {k: v.tolist() for k, v in first.columns().items()} == {k: v.tolist() for k, v in whole.columns().items()}
    first.reset()
    assert len(first) == 0
    with pytest.raises(InputError, match="no image"):
        first.compute()


def test_scores_of_two_protocols_are_never_mixed() -> None:
    paper = ImageScores(PROTOCOLS["paper"])
    for other in (PROTOCOLS["rise"], dataclasses.replace(PROTOCOLS["paper"], version=1)):
        with pytest.raises(InputError, match=r"scores under .* cannot be mixed"):
            paper.merge_state([ImageScores(other)])


def test_a_batch_with_other_columns_is_refused() -> None:
    scores = ImageScores(PROTOCOLS["paper"])
    scores.update(columns(1.0))
    for wrong in ({"a/insertion": torch.ones(1)}, {**columns(1.0), "a/undefined": torch.ones(2)}):
        with pytest.raises(InputError, match="every column"):
            scores.update(wrong)


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


def test_every_method_and_baseline_is_scored() -> None:
    torch.manual_seed(0)
    network = build("tiny", 10)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[:, 8:20, 8:20] = True
    seen: list[int] = []
    report = evaluate_faithfulness(
        network, images, torch.tensor([1, 2, 3]), mean=(0.5,) * 3, std=(0.25,) * 3, masks=masks, centre=True,
        config=EvaluationConfig(methods=tuple(METHODS), images=None, batch_size=2), on_images=seen.append,
    )  # fmt: skip
    assert report.methods.keys() == {*METHODS, RANDOM_MAPS, CENTRE_MAPS} and seen == [2, 3]
    for scores in report.methods.values():
        assert scores.parts.keys() == PARTS.keys() and all(math.isfinite(v) for v in scores.parts.values())
    assert {f"{m}/{n}" for m in report.methods for n in LOCALIZATION} <= report.per_image.keys()
    assert report.standard_error > 0


def test_dense_curves_are_those_of_small_steps() -> None:
    protocol = PROTOCOLS["dense"]
    assert protocol.step_pixels(32) == 8 and protocol.step_pixels(1) == 1


@pytest.mark.parametrize(("n", "height", "width"), [(1, 32, 32), (2, 24, 40), (1, 16, 48)])
def test_one_image_and_images_of_another_size(n: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8)
    config = EvaluationConfig(methods=("grad_cam", "smoothgrad"), images=None)
    report = evaluate_faithfulness(
        build("tiny", 10), images, torch.arange(n), mean=(0.5,) * 3, std=(0.25,) * 3, config=config
    )
    assert report.images == n and math.isfinite(report.faithfulness)
    assert math.isnan(report.standard_error) == (n == 1)
