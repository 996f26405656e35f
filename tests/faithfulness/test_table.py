"""The table of study.evaluate: one screen, every number where it belongs, and nothing said of too few images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from study import metrics
from study.config import EvaluationConfig
from study.errors import ComparisonError
from study.evaluate import DEFAULT_METHODS
from study.faithfulness import FaithfulnessReport, table
from study.faithfulness.report import report_of
from study.faithfulness.stand_ins import described
from study.faithfulness.statistics import image_scores, mean_with_interval
from study.saliency import distinct_methods

METHODS = tuple(DEFAULT_METHODS.split(","))
STAND_INS = ("random", "centre", "edges", "another_image", *(f"inverse_{m}" for m in distinct_methods(METHODS)),
             "randomized_network", "other_network")  # fmt: skip
COSTS = dict.fromkeys(METHODS, 12.34)


def report(n: int = 200, correct: int = 100, masked: int | None = None, **changes: Tensor) -> FaithfulnessReport:
    """Of made-up columns; the last ``correct`` of ``n`` images are classified correctly."""
    generator = torch.Generator().manual_seed(0)
    masked = masked or n

    def draw(rows: int) -> Tensor:
        return 100 * torch.randn(rows, generator=generator, dtype=torch.float64)

    columns = {"label": torch.arange(n) % 10, "correct": torch.arange(n) >= n - correct, "alignment": draw(n) / 100}
    for name in (*METHODS, *STAND_INS, metrics.REFERENCE_MAPS):
        columns |= {f"{name}/{part}": draw(masked).abs() for part in metrics.PARTS}
        columns |= {f"{name}/{p}": draw(n).abs() for p in metrics.LOCALIZATION}
        columns |= {f"{name}/{s}": draw(masked if s.endswith("excess") else n) for s in metrics.METHOD_SCORES}
        columns[f"{name}/undefined"] = torch.arange(n) % 50 == 0
    columns[f"{metrics.REFERENCE_MAPS}/masking_excess"] += 200
    return report_of(
        {**columns, **changes}, EvaluationConfig(methods=METHODS, images=n), temperature=1.25,
        stand_ins=STAND_INS, seconds=1.0,
    )  # fmt: skip


def row(lines: list[str], start: str) -> str:
    return next(line for line in lines if line.strip().startswith(start))


def test_one_screen_that_names_every_map() -> None:
    lines = table.scores("network", report(), COSTS)
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    text = "\n".join(lines)
    for name in STAND_INS:  # over all and over the correct
        assert text.count(f"\n  {described(name, METHODS[0])} ") == 2
    assert text.count("same map as another row: grad_cam") == 1
    assert "temperature 1.25" in lines[0] and "all 200 images: faithfulness" in text
    assert "the 100 images classified correctly: faithfulness" in text and "not measurable" not in text
    for line in (lines[1], row(lines, "the 100 images")):
        assert metrics.FAITHFULNESS_IS.name.replace("_", " ") in line and "masking share" in line


def test_the_numbers_are_those_of_the_images() -> None:
    of = report()
    lines = table.scores("network", of, COSTS)
    second = lines.index(row(lines, "the 100 images"))
    for section, chosen in ((lines[:second], slice(0, None)), (lines[second:], slice(100, None))):
        for name, start in (("layer_cam", "layer_cam"), ("edges", "the image's edges")):
            found = row(section, start)
            for candidate in ("deletion_agreement", "subset_agreement", "masking_excess"):
                d = mean_with_interval(of.per_image[f"{name}/{candidate}"][chosen])
                assert f" {d.mean:+.1f} ±{(d.high - d.low) / 2:.1f} " in found
        drop = of.per_image["layer_cam/average_drop"][chosen].mean()
        assert row(section, "layer_cam").split()[1] == f"{drop:.1f}"
        objective = image_scores({n: v[chosen] for n, v in of.per_image.items()})["faithfulness"].mean()
        assert f"faithfulness {objective:+.1f} ±" in row(section, "all 200" if chosen.start == 0 else "the 100")
    assert row(lines, "layer_cam").split()[-2:] == ["4", "12.3"]  # undefined maps, milliseconds


@pytest.mark.parametrize(("correct", "said"), [(0, True), (29, True), (30, False)])
def test_of_fewer_than_thirty_images_nothing_is_said(correct: int, said: bool) -> None:
    lines = table.scores("network", report(correct=correct), COSTS)
    assert (f"the {correct} images classified correctly: not measurable (fewer than 30)" in lines) == said
    assert len([line for line in lines if line.startswith("layer_cam")]) == (1 if said else 2)


def test_of_too_few_masked_images_only_what_needs_no_masking() -> None:
    lines = table.scores("network", report(n=200, correct=150, masked=70), COSTS)
    (start,) = (i for i, line in enumerate(lines) if line.startswith("the 150 images"))
    assert "(20 masked: not measurable)" in lines[start] and "masking share" not in lines[start]
    cells = row(lines[start:], "layer_cam").split()
    assert cells[1:6] == ["–"] * 5 and cells[-2:] == ["–", "3"] and cells[8].startswith(("+", "-"))
    assert "–" not in row(lines, "layer_cam")


def test_outputs_that_are_not_finite_are_named() -> None:
    values = torch.ones(200, dtype=torch.float64)
    values[3] = torch.nan
    lines = table.scores("network", report(**{"edges/deletion_agreement": values}), COSTS)
    assert "not finite" in row(lines, "the image's edges") and "\n".join(lines).count("not finite") == 1


def test_localisation_leaves_undefined_maps_out() -> None:
    values = torch.full((200,), 40.0)
    values[:50] = torch.nan
    lines = table.scores("network", report(**{"layer_cam/energy_in_mask": values}), COSTS)
    assert row(lines, "layer_cam").split()[7] == "40.0"


def test_differences_are_paired_and_have_units() -> None:
    a, b = report(), report(**{"grad_cam/masking_excess": torch.full((200,), 500.0, dtype=torch.float64)})
    lines = table.differences("a", "b", a, b)
    assert lines[0] == "a minus b, paired over 200 images (95 % bootstrap)"
    assert "+0.00 %  [+0.00, +0.00]  cannot tell" in row(lines, "accuracy")
    excess = image_scores(a.per_image)["masking_excess"].mean() - image_scores(b.per_image)["masking_excess"].mean()
    assert f"{excess:+.2f} pp " in row(lines, "masking excess") and row(lines, "masking excess").endswith("lower")
    assert row(lines, "faithfulness").split()[2] == metrics.FAITHFULNESS.unit.split()[0]
    with pytest.raises(ComparisonError, match="different images"):
        table.differences("a", "b", a, report(masked=50))


def test_smoothgrad_is_compared_by_image() -> None:
    base = report()
    smooth = {n.replace("grad_cam/", "smoothgrad/"): v for n, v in base.per_image.items() if n.startswith("grad_cam/")}
    plain = {n.replace("smoothgrad", "input_gradient"): np.asarray(v, float) - 1 for n, v in smooth.items()}
    base.per_image.update(smooth | plain)
    lines = table.smoothgrad("network", base)
    assert all("+1.00" in line and line.endswith("higher") for line in lines[1:])
    assert [line.split("+")[0].strip() for line in lines[-3:]] == [
        "deletion agreement", "subset agreement", "masking excess",
    ]  # fmt: skip
