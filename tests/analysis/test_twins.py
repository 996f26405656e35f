"""Twins: who is whose, the score recomputed per image, and intervals that mean what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_studies import MakeStudy, invented_table, made_per_image, scored

from analysis.load import load_study
from analysis.pareto import main
from analysis.statistics.front import eligible, front_mask
from analysis.twins import Pair, compare_pair, find_twins, label
from study import metrics, names
from study.errors import ArtifactError, ComparisonError
from study.faithfulness.report import read_per_image
from study.faithfulness.statistics import Difference, bootstrap_means, compare, image_scores, over_pairs

N = 60
#: Columns of per-image tables whose mean over methods and images is faithfulness.
FAITHFULNESS_OF = metrics.FAITHFULNESS_IS.name


def params(weight: float, **more: object) -> dict[str, object]:
    return {"reg_weight": weight, "reg_error": "cosine" if weight else None, "lr": 0.1, **more}


def test_a_twin_differs_in_lambda_alone(make_study: MakeStudy) -> None:
    rows = [
        (names.COMPLETE, params(0.5), scored(50, 9), []),
        (names.COMPLETE, params(0.0, lr=0.2), scored(1, 1), []),
        (names.STOPPED, params(0.0), scored(1, 1), []),
        (names.COMPLETE, params(0.0, data={"source": "/elsewhere"}), scored(1, 1), []),
        (names.COMPLETE, params(0.0), scored(1, 1), []),
        (names.COMPLETE, params(0.3, network="small"), scored(60, 8), []),
        (names.COMPLETE, params(0.0), scored(70, 1), []),
        (names.COMPLETE, params(0.4), scored(2, 2), []),
    ]
    study = load_study(make_study(rows))
    assert find_twins(study, front_mask(study, eligible(study))) == [Pair(0, 3), Pair(5, None)]


def test_what_exists_only_with_lambda_and_what_an_older_version_did_not_know_separate_no_twins() -> None:
    plain = {"reg_weight": 0.0, "reg_error": None, "lr": 0.1}
    newer = {"reg_interval": 4, "reg_warmup_epochs": 2.0, "crop_mode": "zero"}
    rows = [
        (0, plain, scored(1, 1)),
        (0, {**params(0.5), **newer}, scored(50, 9)),
        (0, {**params(0.4), **newer, "crop_mode": "reflect"}, scored(60, 8)),
    ]
    study = invented_table(rows)
    assert find_twins(study, front_mask(study, eligible(study))) == [Pair(1, 0), Pair(2, None)]


def test_the_scores_of_an_image_by_hand(tmp_path: Path) -> None:
    one = {"average_drop": [40.0, 8.0], "masking_excess": [6.0, 9.0], "deletion_agreement": [30.0, 10.0]}
    two = {**one, "average_drop": [0.0, 4.0], "deletion_agreement": [50.0, 0.0], "undefined": [0.0, 1.0]}
    # Axiom-CAM is Grad-CAM's map again and counts once; neither does the reference count as a method.
    methods = {"grad_cam": one, "grad_cam_plus_plus": two, "xgrad_cam": one, metrics.REFERENCE_MAPS: two}
    made = made_per_image(tmp_path / "t.parquet", [1, 0], methods, masked=1)
    table = read_per_image(tmp_path / "t.parquet")
    assert {name: len(v) for name, v in table.items()} == {name: len(v) for name, v in made.items()}
    scores = image_scores(table)
    assert scores["average_drop"] == pytest.approx([20.0])
    assert scores["masking_excess"] == pytest.approx([6.0])
    assert scores["deletion_agreement"] == pytest.approx([40.0, 5.0])
    assert scores["undefined"] == pytest.approx([0.0, 50.0])
    assert scores["accuracy"].tolist() == [100.0, 0.0]
    assert scores["faithfulness"].tolist() == scores[FAITHFULNESS_OF].tolist()


def test_missing_columns_are_named() -> None:
    """As in a table of an earlier version, which had no candidates."""
    columns = {f"grad_cam/{part}": np.zeros(1) for part in (*metrics.PARTS, "undefined")}
    with pytest.raises(ArtifactError, match="lacks the column 'grad_cam/deletion_agreement'"):
        image_scores({"label": np.zeros(1), "correct": np.zeros(1), **columns})


def test_labels_have_the_units_and_directions_of_the_metrics() -> None:
    assert label("accuracy") == "accuracy (%, higher is better)"
    assert label("average_drop") == "average drop (%, lower is better)"
    assert label("insertion") == "insertion (%, higher is better)"
    assert label("undefined") == "undefined (%, lower is better)"
    assert label("other_excess") == "other excess (pp)"
    for metric in (metrics.FAITHFULNESS, *metrics.CANDIDATES):
        assert label(metric.name) == f"{metric.name.replace('_', ' ')} ({metric.unit}, higher is better)"


def test_verdicts_follow_the_interval() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(400.0)
    noise = rng.normal(size=400)
    plain = {"label": label, "up": noise, "down": noise, "same": noise}
    other = {
        "label": label,
        "up": noise + 1 + 0.1 * rng.normal(size=400),
        "down": noise - 1,
        "same": noise + rng.normal(size=400),
    }
    differences = compare(other, plain)
    assert {k: d.verdict for k, d in differences.items()} == {"up": "higher", "down": "lower", "same": "cannot tell"}
    assert differences["down"].mean == pytest.approx(-1)
    with pytest.raises(ComparisonError, match="different images"):
        compare(other, {**plain, "label": label + 1})


def test_bootstrap_spread_is_the_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=(500, 2)) * [1.0, 3.0]
    spread = bootstrap_means(values).std(axis=0)
    assert spread == pytest.approx(values.std(axis=0) / np.sqrt(500), rel=0.05)
    assert (bootstrap_means(values, 10) == bootstrap_means(values, 10)).all()


@pytest.mark.slow
def test_the_interval_over_pairs_is_students() -> None:
    d = over_pairs([1.0, 2.0, 3.0])
    assert (d.mean, d.high - d.mean) == (2.0, pytest.approx(4.302652729749 / np.sqrt(3)))
    assert Difference(0, -1, 1).verdict == "cannot tell"


@pytest.mark.slow
def test_pareto_reports_pairs_from_the_ledgers_artifacts(
    make_study: MakeStudy, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    correct, base = rng.random(N) < 0.6, rng.uniform(20, 60, N)
    rows = []
    for i, (weight, gain, accuracy, lr) in enumerate(
        ((0.5, 10, 60, 0.1), (0.0, 0, 50, 0.1), (0.2, 5, 65, 0.3), (0.0, 0, 50, 0.3))
    ):
        file = tmp_path / str(i) / names.PER_IMAGE_FILE
        better = base + gain + rng.normal(size=N)
        made_per_image(file, correct, {"grad_cam": {FAITHFULNESS_OF: better}}, masked=N - 10)
        faithfulness = float(image_scores(read_per_image(file))["faithfulness"].mean())
        rows.append((names.COMPLETE, params(weight, lr=lr), scored(accuracy, faithfulness), [file]))
    make_study(rows)
    assert main(["demo", "--storage", str(storage)]) == 0
    out = capsys.readouterr().out
    assert "twins: 2 of 2 front networks" in out
    assert "trial 0 (λ 0.5) against trial 1 (λ 0), 60 images" in out
    assert "not the randomness of training (seeds)" in out
    assert "mean over 2 pairs; 95 % t-interval over pairs" in out
    faithfulness = [line for line in out.splitlines() if line.strip().startswith(label("faithfulness"))]
    assert [line.split("]")[1].strip() for line in faithfulness[:2]] == ["higher", "higher"]
    accuracy = next(line for line in out.splitlines() if line.strip().startswith("accuracy (%"))
    assert accuracy.endswith("cannot tell")


def test_scores_that_the_ledger_contradicts_are_not_compared(
    make_study: MakeStudy, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / names.PER_IMAGE_FILE
    made_per_image(file, [1, 0], {"grad_cam": {}})
    make_study([(names.COMPLETE, params(w), scored(50 + w, 5), [file]) for w in (0.5, 0.0)])
    assert main(["demo", "--storage", str(storage)]) == 0
    assert "not comparable: trial 0: its per-image scores give faithfulness 0.000, the ledger says 5.000" in (
        capsys.readouterr().out
    )


def test_scores_under_two_protocols_are_not_compared(make_study: MakeStudy, tmp_path: Path) -> None:
    file = tmp_path / names.PER_IMAGE_FILE
    made_per_image(file, [1, 0], {"grad_cam": {}})
    ledger = make_study([(names.COMPLETE, params(w), scored(50 + w, 0), [file]) for w in (0.5, 0.0)])
    assert compare_pair(ledger, load_study(ledger), Pair(0, 1)).differences is not None
    run_ids = load_study(ledger).column("run_id")
    for run_id, protocol in zip(run_ids, ("paper/2", "paper/1"), strict=True):
        ledger._client.set_tag(run_id, names.TAG_PROTOCOL, protocol)
    study = load_study(ledger)
    assert study.column("protocol") == ["paper/2", "paper/1"]
    compared = compare_pair(ledger, study, Pair(0, 1))
    assert compared.differences is None and "scored under paper/2 and paper/1" in compared.why_not
    ledger._client.set_tag(run_ids[1], names.TAG_PROTOCOL, "paper/2")
    assert compare_pair(ledger, load_study(ledger), Pair(0, 1)).differences is not None
