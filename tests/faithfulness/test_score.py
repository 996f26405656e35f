"""The evaluator: what a network is worth whose evidence is known, and what one is worth that explains nothing."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from study.config import EvaluationConfig
from study.data.labelled import LabelledImages
from study.errors import InputError
from study.faithfulness import FaithfulnessReport, evaluate_faithfulness
from study.faithfulness.calibration import calibrate
from study.faithfulness.report import read_per_image, write_per_image
from study.faithfulness.statistics import image_scores
from study.metrics import CANDIDATES, LOCALIZATION, METHOD_SCORES, METHODS, PARTS, REFERENCE_MAPS, saliency_metric
from study.networks import build

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CAMS = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "layer_cam", "ablation_cam", "score_cam")


class BlobNet(nn.Module):
    """Class 1 is a bright red blob, class 0 its absence; ``shuffle`` moves the evidence to wrong places of the map."""

    def __init__(self, shuffle: bool = False) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.rectify = nn.ReLU()
        self.head = nn.Linear(3, 2)
        self.shuffle = shuffle
        self.order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]]))
            self.head.bias.copy_(torch.tensor([0.0, -3.0]))

    def features(self, x: Tensor) -> Tensor:
        a = self.rectify(self.pool(x) - 0.5)
        return a.flatten(2)[:, :, self.order].view(-1, 3, 8, 8) if self.shuffle else a

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def blobs(n: int = 24) -> tuple[Tensor, Tensor]:
    """Grey images with an 8×8 red square at a random place."""
    generator = torch.Generator().manual_seed(0)
    images = torch.full((n, 3, 32, 32), 128, dtype=torch.uint8)
    for i in range(n):
        y, x = (int(v) for v in torch.randint(0, 25, (2,), generator=generator))
        images[i, 0, y : y + 8, x : x + 8] = 255
    return images, torch.ones(n, dtype=torch.int64)


def score(
    network: nn.Module, images: Tensor, labels: Tensor, temperature: float = 1.0, **changes: object
) -> FaithfulnessReport:
    stand_ins = changes.pop("stand_ins", None)
    config = EvaluationConfig(images=None, **changes)  # type: ignore[arg-type]
    labelled = LabelledImages(images, labels, MEAN, STD)
    return evaluate_faithfulness(
        network,
        labelled,
        config,
        temperature=temperature,
        stand_ins=stand_ins,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return build("tiny", 10).train()


NOISE = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(12) % 10


@pytest.mark.parametrize("protocol", ["paper", "rise", "blur"])
def test_a_constant_network_is_worth_exactly_nothing(protocol: str) -> None:
    torch.manual_seed(0)
    network = build("tiny", 10)
    nn.init.zeros_(network.head.weight)  # type: ignore[arg-type]
    report = score(network, NOISE, LABELS, protocol=protocol)
    for metric in CANDIDATES:
        if metric.name != "masking_share":
            assert report.scores[metric.ledger_name] == 0.0, metric.name
    assert report.faithfulness == 0.0 and report.scores["val/undefined_share"] == 100
    assert "val/masking_share" not in report.metrics(), "a share of nothing is not a number"
    parts = report.methods["grad_cam"].parts
    assert parts["average_drop"] == parts["average_increase"] == parts["average_gain"] == 0
    assert report.methods["grad_cam"].undefined == 12
    assert report.methods["grad_cam"].mean == pytest.approx(40), "without a control it would score 40"
    assert report.protocol == f"{protocol}/2"


def test_a_map_of_ones_is_worth_exactly_nothing(tiny: nn.Module) -> None:
    report = score(tiny, NOISE, LABELS, stand_ins={"ones": torch.ones(12, 8, 8)})
    ones = report.methods["ones"]
    assert ones.undefined == 12
    assert all(ones.candidates[name] == 0 for name in ("deletion_agreement", "subset_agreement", "masking_excess"))


def test_a_map_that_is_the_same_for_all_images_is_worth_exactly_nothing(tiny: nn.Module) -> None:
    """Whatever the middle of images is worth, the other image's map is worth it too."""
    middle = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).expand(12, -1, -1)
    report = score(tiny, NOISE, LABELS, stand_ins={"middle": middle})
    middling = report.methods["middle"]
    assert middling.undefined == 0
    assert middling.candidates["masking_excess"] == pytest.approx(0, abs=1e-5)
    assert middling.candidates["deletion_agreement"] == pytest.approx(0, abs=1e-9)


def test_evidence_that_is_where_the_map_says_beats_other_images_maps() -> None:
    images, labels = blobs()
    honest, shuffled = BlobNet(), BlobNet(shuffle=True)
    for network in (honest, shuffled):
        assert score(network, images, labels).accuracy == 100
    true, moved = score(honest, images, labels), score(shuffled, images, labels)
    for metric in CANDIDATES[:3]:
        a, b = true.scores[metric.ledger_name], moved.scores[metric.ledger_name]
        assert a > 5 and a > b + 5, metric.name


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
def test_confidence_buys_nothing(factor: float) -> None:
    """The head times a factor is the same network after calibration: its six maps and all candidates too."""
    torch.manual_seed(0)
    network = build("tiny", 10)
    nn.init.normal_(network.head.weight, 0, 0.3)  # type: ignore[arg-type]
    scaled = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in scaled.head.parameters():  # type: ignore[union-attr, operator]
            parameter.mul_(factor)
    reports = [
        score(n, NOISE, LABELS, calibrate(n, LabelledImages(NOISE, LABELS, MEAN, STD)), methods=CAMS)
        for n in (network, scaled)
    ]
    assert reports[1].temperature == pytest.approx(factor * reports[0].temperature, rel=1e-5)
    for method in CAMS:
        for name in METHOD_SCORES:
            values = [r.methods[method].candidates[name] for r in reports]
            assert values[1] == pytest.approx(values[0], rel=1e-2, abs=1e-3), (method, name)


def test_batches_change_nothing(tiny: nn.Module) -> None:
    whole, chunked = score(tiny, NOISE, LABELS, batch_size=100), score(tiny, NOISE, LABELS, batch_size=5)
    assert whole.per_image.keys() == chunked.per_image.keys()
    for name, values in whole.per_image.items():
        np.testing.assert_allclose(values.astype(float), chunked.per_image[name].astype(float), rtol=1e-4, atol=1e-3)


def test_means_are_the_means_of_the_images(tiny: nn.Module) -> None:
    methods = ("grad_cam", "xgrad_cam", "grad_cam_plus_plus")
    report = score(tiny, NOISE, LABELS, methods=methods)
    assert report.distinct == ("grad_cam", "grad_cam_plus_plus")
    for method in methods:
        for part in PARTS:
            values = report.per_image[f"{method}/{part}"]
            assert values.shape == (12,) and (values >= 0).all() and (values <= 100.001).all()
            assert report.methods[method].parts[part] == pytest.approx(float(values.mean()), abs=1e-4)
        parts = report.methods[method].parts
        mean = (
            200 - parts["average_drop"] - parts["deletion"]
            + parts["average_increase"] + parts["average_gain"] + parts["insertion"]
        ) / 5  # fmt: skip
        assert report.methods[method].mean == pytest.approx(mean)
    for metric in CANDIDATES[:3]:
        of_methods = [report.methods[m].candidates[metric.name] for m in report.distinct]
        assert report.scores[metric.ledger_name] == pytest.approx(sum(of_methods) / 2, abs=1e-5)
    logged = report.metrics()
    assert logged["val/faithfulness"] == report.faithfulness
    assert logged[saliency_metric("grad_cam", "average_drop")] == report.methods["grad_cam"].parts["average_drop"]
    assert logged["val/temperature"] == 1 and logged["val/undefined_share"] == report.scores["val/undefined_share"]
    assert report.faithfulness == pytest.approx(float(image_scores(report.per_image)["faithfulness"].mean()))


def test_masking_may_take_fewer_images(tiny: nn.Module, tmp_path: object) -> None:
    few, all_of_them = score(tiny, NOISE, LABELS, masking_images=5, batch_size=4), score(tiny, NOISE, LABELS)
    assert few.masking_images == 5 and few.images == 12
    on_few = (*PARTS, "masking_excess", "own_excess", "other_excess", "subset_agreement", "other_subset_agreement")
    for name, values in few.per_image.items():
        source, _, column = name.rpartition("/")
        assert len(values) == (5 if column in on_few or source == REFERENCE_MAPS else 12)
        if source != REFERENCE_MAPS:  # which are made for these images alone, those of the other images as well
            np.testing.assert_allclose(
                values.astype(float), all_of_them.per_image[name][: len(values)].astype(float), rtol=1e-4, atol=1e-3
            )
    from pathlib import Path

    file = Path(str(tmp_path)) / "per_image.parquet"
    write_per_image(file, few.per_image)
    again = read_per_image(file)
    assert again.keys() == few.per_image.keys()
    assert all(np.array_equal(again[name], values) for name, values in few.per_image.items())


def test_the_network_is_left_as_it_was(tiny: nn.Module) -> None:
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    score(tiny, NOISE, LABELS, temperature=2.0)
    assert tiny.training and all(p.grad is None for p in tiny.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_a_broken_network_has_no_score() -> None:
    network = build("tiny", 10)
    nn.init.constant_(network.head.bias, math.nan)  # type: ignore[arg-type]
    report = score(network, NOISE, LABELS)
    assert all(math.isnan(report.scores[m.ledger_name]) for m in CANDIDATES)


def test_undefined_maps_score_zero_for_their_image_and_are_counted(tiny: nn.Module) -> None:
    maps = torch.rand(12, 8, 8, generator=torch.Generator().manual_seed(1))
    maps[3], maps[7] = 1.0, math.nan
    report = score(tiny, NOISE, LABELS, stand_ins={"given": maps})
    assert report.methods["given"].undefined == 2
    for name in ("deletion_agreement", "subset_agreement", "masking_excess"):
        values = report.per_image[f"given/{name}"]
        assert values[3] == values[7] == 0 and np.isfinite(values).all() and (values[:3] != 0).all()


def test_alignment_lies_between_opposite_and_equal(tiny: nn.Module) -> None:
    report = score(tiny, NOISE, LABELS)
    assert -1 <= report.alignment <= 1
    images, labels = blobs(4)
    network = BlobNet()
    # A label of 0 makes the gradient that reaches the rectifier positive where it is active: guiding removes nothing.
    assert score(network, images, torch.zeros_like(labels)).alignment == pytest.approx(1, abs=1e-5)


def test_the_class_of_interest_is_the_protocols(tiny: nn.Module) -> None:
    rise = score(tiny, NOISE, LABELS, protocol="rise")
    shifted = score(tiny, NOISE, (LABELS + 1) % 10, protocol="rise")
    assert rise.faithfulness == shifted.faithfulness, "rise explains the predicted class, whatever the label"
    paper = score(tiny, NOISE, LABELS).faithfulness
    assert paper != score(tiny, NOISE, (LABELS + 1) % 10).faithfulness


@pytest.mark.slow
def test_every_method_and_stand_in_is_scored() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[:, 8:20, 8:20] = True
    seen: list[tuple[int, int]] = []
    report = evaluate_faithfulness(
        build("tiny", 10), LabelledImages(images, torch.tensor([1, 2, 3]), MEAN, STD, masks),
        EvaluationConfig(methods=tuple(METHODS), images=None, batch_size=2), temperature=1.5,
        stand_ins={"given": torch.rand(3, 5, 5)}, on_images=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    assert report.methods.keys() == {*METHODS, "given"} and seen == [(2, 6), (3, 6), (5, 6), (6, 6)]
    for scores in report.methods.values():
        assert scores.parts.keys() == PARTS.keys() and all(math.isfinite(v) for v in scores.parts.values())
        assert scores.candidates.keys() == set(METHOD_SCORES)
    assert {f"{m}/{n}" for m in report.methods for n in LOCALIZATION} <= report.per_image.keys()
    assert report.standard_error > 0


@pytest.mark.parametrize(("n", "height", "width"), [(3, 32, 32), (2, 24, 40), (2, 16, 48)])
def test_images_of_another_size(n: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8)
    report = score(build("tiny", 10), images, torch.arange(n), methods=("grad_cam", "smoothgrad"))
    assert report.images == n and math.isfinite(report.faithfulness) and math.isfinite(report.standard_error)


def test_one_image_has_no_other_to_be_compared_with(tiny: nn.Module) -> None:
    with pytest.raises(InputError, match="score at least 2"):
        score(tiny, NOISE[:1], LABELS[:1])
