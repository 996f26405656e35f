"""Maps that are not the network's explanation: each is what it says, and what is constructed gets what it must."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from study.config import EvaluationConfig
from study.data.labelled import LabelledImages
from study.faithfulness import evaluate_faithfulness
from study.faithfulness.deletion import random_halves, rank_agreement
from study.faithfulness.masking import undefined_maps
from study.faithfulness.stand_ins import centre_maps, described, edge_energy, inverse, random_maps, stand_in_maps
from study.networks import build
from study.saliency import saliency_maps

N = 10
IMAGES = torch.randint(0, 256, (N, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
LABELS = (torch.arange(N) * 3) % 10
LABELLED = LabelledImages(IMAGES, LABELS, mean=(0.5,) * 3, std=(0.25,) * 3)
X = (IMAGES.float() / 255 - 0.5) / 0.25
METHODS = ("grad_cam", "xgrad_cam", "grad_cam_plus_plus")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build("tiny", 10).train()


def made(network: nn.Module, other: nn.Module | None = None, **changes: object) -> dict[str, Tensor]:
    config = EvaluationConfig(**{"methods": METHODS, "batch_size": 4, **changes})  # type: ignore[arg-type]
    return stand_in_maps(network, LABELLED, config, temperature=2.0, other=other)


def test_one_map_an_image_and_distinct_methods_alone(network: nn.Module) -> None:
    torch.manual_seed(1)
    maps = made(network, build("tiny", 10))
    assert list(maps) == ["random", "centre", "edges", "another_image", "inverse_grad_cam",
                          "inverse_grad_cam_plus_plus", "randomized_network", "other_network"]  # fmt: skip
    assert all(len(m) == N and m.ndim == 3 and not undefined_maps(m).all() for m in maps.values())
    assert len({described(name, "grad_cam") for name in maps}) == len(maps)
    assert "other_network" not in made(network)


def test_a_method_that_repeats_another_may_come_first(network: nn.Module) -> None:
    expected = made(network)
    for name, maps in made(network, methods=("xgrad_cam", "grad_cam", "grad_cam_plus_plus")).items():
        torch.testing.assert_close(maps, expected[name], msg=name)


def test_the_network_and_the_random_state_stay_as_they_were(network: nn.Module) -> None:
    before, state = [p.clone() for p in network.parameters()], torch.get_rng_state()
    made(network)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)) and network.training
    assert torch.equal(state, torch.get_rng_state())


def test_the_batch_size_changes_nothing(network: nn.Module) -> None:
    whole, parts = made(network, batch_size=N), made(network, batch_size=3)
    for name, maps in whole.items():
        torch.testing.assert_close(maps, parts[name], msg=name)


def test_another_image_is_half_the_images_away(network: nn.Module) -> None:
    own = saliency_maps(network, X, LABELS, ["grad_cam"]).maps["grad_cam"]
    torch.testing.assert_close(_scaled(made(network)["another_image"]), _scaled(own.roll(-N // 2, 0)))


def test_the_other_network_explains_the_class_that_is_asked_of_the_first(network: nn.Module) -> None:
    torch.manual_seed(1)
    other = build("tiny", 10)
    with torch.no_grad():
        predicted = network.eval()(X).argmax(1)
        network.train()
    assert not torch.equal(predicted, LABELS)
    for protocol, classes in (("paper", LABELS), ("rise", predicted)):
        expected = saliency_maps(other, X, classes, ["grad_cam"]).maps["grad_cam"]
        torch.testing.assert_close(made(network, other, protocol=protocol)["other_network"], expected)


def test_the_randomized_network_is_seeded_and_another_one(network: nn.Module) -> None:
    first, again, third = (made(network, random_seed=seed)["randomized_network"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, third)
    own = saliency_maps(network, X, LABELS, ["grad_cam"]).maps["grad_cam"]
    assert not torch.allclose(_scaled(first), _scaled(own), atol=0.05)


def test_random_cells_are_seeded_by_the_images_number_and_independent_of_the_evaluators_draws() -> None:
    assert torch.equal(random_maps(5, 7), random_maps(50, 7)[:5])
    assert not torch.equal(random_maps(5, 7), random_maps(5, 8))
    kept = random_halves(1, 0)[0]  # drawn from the same seed
    correlations = [abs(float(rank_agreement(random_maps(1, 0).flatten(1), k[None].double()))) for k in kept]
    assert max(correlations) < 75, "the same draws would agree at 87 %"


def test_the_centre_is_the_same_for_every_image() -> None:
    maps = centre_maps(3)
    assert torch.equal(maps[0], maps[2]) and torch.equal(maps[0], maps[0].flip(0)) and maps.stride(0) == 0


def test_inverse_and_edges_by_hand() -> None:
    maps = torch.tensor([[[0.0, 1], [2, 5]], [[3, 3], [3, 3]], [[math.nan, 0], [0, 1]]])
    assert inverse(maps)[0].tolist() == [[5, 4], [3, 0]]
    assert undefined_maps(inverse(maps)).tolist() == [False, True, True]
    image = torch.tensor([[[0.0, 3], [1, 1]]]).repeat(1, 3, 1, 1)  # grey
    assert edge_energy(image)[0].tolist() == [[9 + 1, 4], [0, 0]]


def test_the_evaluator_scores_them_and_what_must_be_nothing_is(network: nn.Module) -> None:
    config = EvaluationConfig(methods=("grad_cam",), images=None, batch_size=5, masking_images=4)
    maps = made(network, methods=("grad_cam",))

    def report_with(stand_ins: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        report = evaluate_faithfulness(network, LABELLED, config, temperature=2.0, stand_ins=stand_ins)
        return report.scores, report.per_image

    alone, _ = report_with({})
    scores, per_image = report_with(maps)
    assert scores == pytest.approx(alone, nan_ok=True), "stand-ins are beside the network's score"
    for column in ("deletion_agreement", "subset_agreement", "masking_excess"):
        # The same map for every image: its own and the other image's are one.
        assert per_image[f"centre/{column}"] == pytest.approx(np.zeros_like(per_image[f"centre/{column}"]), abs=1e-4)
    for column in ("deletion_agreement", "subset_agreement"):  # an order turned round
        assert per_image[f"inverse_grad_cam/{column}"] == pytest.approx(-per_image[f"grad_cam/{column}"], abs=1e-3)


def _scaled(maps: Tensor) -> Tensor:
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
