"""The replay of searches, on a table of curves that follow a formula."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from benchmarks import search
from benchmarks.contenders import CONTENDERS, contender
from benchmarks.record_curves import SCORED, SPEC, points
from benchmarks.replay import START_EPOCHS, Cluster, Replay
from benchmarks.search import Progress, interval, ratios, replay_seed
from benchmarks.surrogate import Surrogate
from study.spec.space import Point
from study.spec.study_spec import StudySpec, load_spec

EPOCHS = 27


def accuracy(point: Point, epoch: int) -> float:
    """Best at a learning rate of 0.1, worse with lambda."""
    best = 90 - 15 * math.log10(float(point["lr"]) / 0.1) ** 2 - 8 * float(point["reg_weight"]) ** 0.5
    return max(best, 5.0) * (1 - math.exp(-epoch / 5))


def faithfulness(point: Point, epoch: int) -> float:
    """Better with lambda and with a small learning rate."""
    return (6 + math.log10(float(point["reg_weight"]) + 1e-3) - math.log10(float(point["lr"]))) * epoch / EPOCHS


def curve(i: int, seed: int, point: Point, noise: float) -> list[dict[str, object]]:
    rows = []
    for epoch in range(1, EPOCHS + 1):
        scored = epoch in (*SCORED, EPOCHS)
        rows.append(
            {
                "curve": i, "seed": seed, "reg_error": None, **point, "epoch": epoch,
                "accuracy": accuracy(point, epoch) + noise,
                "faithfulness": faithfulness(point, epoch) - noise if scored else math.nan,
                "faithfulness_error": 0.5 if scored else math.nan,
                "epoch_seconds": 32.0 / int(point["batch_size"]) * (2 if point["reg_weight"] else 1),
                "evaluation_seconds": 1.25 if scored else 0.25,
            }
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def spec() -> StudySpec:
    return load_spec(SPEC)


@pytest.fixture(scope="module")
def surrogate(spec: StudySpec) -> Surrogate:
    found = points(spec, 60)
    rows = [row for i, point in enumerate(found) for row in curve(i, 0, point, 0.0)]
    rows += [row for i, point in enumerate(found[:4]) for row in curve(60 + i, 1, point, (-1) ** i)]
    return Surrogate(pd.DataFrame(rows), spec)


@pytest.mark.slow
def test_the_surrogate_follows_the_curves(surrogate: Surrogate, spec: StudySpec) -> None:
    others = points(spec.model_copy(update={"seed": 5}), 40)[2:]
    truth = np.array([surrogate.truth(p) for p in others])
    expected = np.array([[accuracy(p, EPOCHS), faithfulness(p, EPOCHS)] for p in others])
    assert np.corrcoef(truth[:, 0], expected[:, 0])[0, 1] > 0.95
    assert np.corrcoef(truth[:, 1], expected[:, 1])[0, 1] > 0.95
    assert surrogate.left_out["accuracy"]["error"] < surrogate.left_out["accuracy"]["of_mean"] / 2
    assert surrogate.between_seeds["accuracy"] == pytest.approx(1 / math.sqrt(2), abs=1e-3)


@pytest.mark.slow
def test_a_training_is_fixed_by_point_and_seed(surrogate: Surrogate, spec: StudySpec) -> None:
    recorded = surrogate.points[5]
    expected = [accuracy(recorded, e) for e in (*SCORED, EPOCHS)]
    assert surrogate.shown(recorded, 0).values[:, 0] == pytest.approx(expected)
    new = {**recorded, "lr": 0.07}
    same, again, other = (surrogate.shown(new, seed).values for seed in (0, 0, 1))
    assert (same == again).all() and (same != other).any()


@pytest.mark.slow
def test_time_on_one_worker_is_the_sum_of_its_trials(surrogate: Surrogate, spec: StudySpec) -> None:
    cluster = Cluster(surrogate, workers=1, epochs=EPOCHS)
    replay = cluster.run(CONTENDERS["fifo_random"](spec), seed=3, trials=5)
    assert len(replay.ended) == 5
    expected = 0.0
    for trial in replay.ended:
        epoch, score = surrogate.seconds(trial.point)
        plain = 32 / int(trial.point["batch_size"]) * (2 if trial.point["reg_weight"] else 1)
        assert (epoch, score) == pytest.approx((plain + 0.25, 1.0))
        expected += START_EPOCHS * surrogate.typical_seconds() + EPOCHS * epoch + score
    assert replay.seconds == pytest.approx(expected)
    two = Cluster(surrogate, workers=2, epochs=EPOCHS)
    assert two.run(CONTENDERS["fifo_random"](spec), seed=3, trials=5).seconds < 0.7 * expected


@pytest.mark.slow
def test_a_search_is_fixed_by_its_seed_and_stops_no_dominating_trial(
    surrogate: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "TRIALS", 16)
    search._prepare(surrogate, 4)
    names = ("fifo_tpe", "asha_sum", "naive", "ours:sampler=tpe")
    found = dict([replay_seed((7, names)), replay_seed((8, names))])
    _, again = replay_seed((7, names))
    for name in names:
        assert (found[7][name].seconds == again[name].seconds).all()
        assert (found[7][name].volume == again[name].volume).all()
        assert found[7][name].complete > 0 and (np.diff(found[7][name].volume) >= 0).all()
    assert all(p["ours:sampler=tpe"].wrong_stops == 0 for p in found.values())
    assert found[7]["ours:sampler=tpe"].begun > found[7]["fifo_tpe"].begun
    own, whole = ratios(found, "fifo_tpe")
    assert (own == 1).all() and (whole <= 1).all()


def test_time_to_a_volume_and_area() -> None:
    progress = Progress(np.array([0.0, 2.0, 5.0]), np.array([0.0, 10.0, 20.0]), 10.0, 2, 2, 0, 0)
    assert progress.until(10) == 2 and progress.until(11) == 5 and progress.until(21) == math.inf
    assert progress.area() == pytest.approx((3 * 10 + 5 * 20) / 10)
    assert progress.at(0.1) == 0 and progress.at(0.5) == 20
    assert Progress.judge(Replay(), lambda p: p, 1.0).area() == 0


def test_intervals_of_medians_survive_searches_that_never_arrived() -> None:
    middle, low, high = interval(np.array([0.1, 0.2, 0.3, math.inf]))
    assert middle == 0.25 and low == pytest.approx(0.1) and high == math.inf


def test_what_is_changed_about_ours(spec: StudySpec) -> None:
    entrant = contender("ours:reduction=4:noise_tolerance=0.5:sampler=tpe:rungs=2+6")(spec)
    assert entrant.spec.halving is not None and entrant.spec.sampler == "tpe"
    assert (entrant.spec.halving.reduction, entrant.spec.halving.noise_tolerance) == (4, 0.5)
    assert entrant.rungs == (2, 6) and entrant.scored_at_rungs
    assert contender("ours:stopping=null")(spec).spec.halving is None
    for name in ("theirs", "ours:nonsense=1"):
        with pytest.raises(KeyError):
            contender(name)
