"""Probabilities and bands from replicates: known cases, the pooled spread, and what counts as a replicate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_studies import MakeStudy, scored

from analysis.export.picks import pick_rows
from analysis.load import load_study
from analysis.pareto import main
from analysis.statistics.front import find_front
from analysis.statistics.replicates import probabilities, single_seed_fronts
from study import names
from study.ledger import Ledger
from study.metrics import ACCURACY, FAITHFULNESS

TWO = (ACCURACY, FAITHFULNESS)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_no_spread_is_certainty() -> None:
    samples = [np.array([[2.0, 2.0]] * 2), np.array([[1.0, 1.0]]), np.array([[0.0, 3.0]])]
    assert probabilities(samples, TWO, rng()).tolist() == [1, 0, 1]


def test_equal_means_are_a_draw() -> None:
    """One objective, two configurations of equal mean: each is the better with probability 1/2."""
    samples = [np.array([[1.0], [3.0]]), np.array([[0.0], [4.0]])]
    assert probabilities(samples, (ACCURACY,), rng(), draws=4000) == pytest.approx([0.5, 0.5], abs=0.03)


def test_the_probability_is_that_of_students_t() -> None:
    """Two configurations of one objective: the difference of their means over its standard error is t distributed."""
    from scipy import stats

    samples = [np.array([[1.0], [2.0], [3.0]]), np.array([[0.0], [1.0], [2.0], [1.0]])]
    freedom = 2 + 3
    pooled = sum(((s - s.mean()) ** 2).sum() for s in samples) / freedom
    t = (2.0 - 1.0) / np.sqrt(pooled * (1 / 3 + 1 / 4))
    found = probabilities(samples, (ACCURACY,), rng(), draws=20_000)
    assert found[0] == pytest.approx(stats.t.cdf(t, freedom), abs=0.01)
    assert found.sum() == pytest.approx(1)


def test_more_seeds_make_surer() -> None:
    few = [np.array([[1.0], [3.0]]), np.array([[0.0], [2.0]])]
    many = [np.tile(s, (20, 1)) for s in few]
    assert probabilities(many, (ACCURACY,), rng())[0] > probabilities(few, (ACCURACY,), rng())[0]


def test_without_replicates_nothing_is_claimed() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        probabilities([np.array([[1.0, 1.0]])], TWO, rng())


def test_a_single_seed_study_has_one_seed_of_each() -> None:
    samples = [np.array([[1.0, 5.0], [2.0, 4.0]]), np.array([[0.0, 6.0]])]
    fronts = {tuple(map(tuple, front.tolist())) for front in single_seed_fronts(samples, TWO, rng())}
    assert fronts == {((1.0, 5.0), (0.0, 6.0)), ((2.0, 4.0), (0.0, 6.0))}


def repeated(make_study: MakeStudy) -> Ledger:
    ledger = make_study([])
    runs = [(0.1, 0, 50, 5), (0.1, 1, 52, 6), (0.2, 0, 60, 2), (0.2, 1, 61, 3), (0.3, 0, 20, 1), (0.3, 0, 20, 1)]
    for trial, (lr, seed, accuracy, faithfulness) in enumerate(runs):
        run = ledger.open_trial(trial, seed, {"lr": lr, "seed": seed, "data": {"source": f"/{trial}"}}, {})
        run.sync([{"epoch": 1, **scored(accuracy, faithfulness)}])
        run.finish(names.COMPLETE)
    return ledger


def test_replicates_differ_in_the_seed_alone(make_study: MakeStudy) -> None:
    front = find_front(load_study(repeated(make_study)))
    assert front.repeated is not None
    assert front.repeated.freedom == 2  # the two runs of lr 0.3 have one seed: the same training twice
    assert front.repeated.seeds.tolist() == [2, 2, 2, 2, 1, 1]
    assert front.repeated.probability[0] == front.repeated.probability[1] > 0.9
    assert front.repeated.probability[4] < 0.1
    low, middle, high = front.repeated.volume
    assert 50 * 5 + 10 * 2 == low <= middle <= high == 52 * 6 + 9 * 3
    assert front.repeated.bands is not None and sorted(front.repeated.bands) == [5, 50, 95]


def test_the_command_says_how_sure_the_front_is(
    make_study: MakeStudy, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repeated(make_study)
    assert main(["demo", "--storage", str(storage), "--json"]) == 0
    printed = capsys.readouterr().out
    assert "(2)" in printed and "studies with one seed a configuration" in printed
    last = json.loads(printed.splitlines()[-1])
    assert {"low", "median", "high"} == set(last["single_seed_hypervolume"])
    assert all(row["seeds"] == 2 and 0 <= row["probability"] <= 1 for row in last["front"])


def test_a_lucky_seed_is_no_front_of_its_own(
    make_study: MakeStudy, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = make_study([])
    for trial, (lr, seed, *scores) in enumerate([(0.1, 0, 50, 4), (0.1, 1, 70, 8), (0.2, 0, 65, 7), (0.3, 0, 40, 9)]):
        run = ledger.open_trial(trial, seed, {"lr": lr, "seed": seed}, {})
        run.sync([{"epoch": 1, **scored(*scores)}])
        run.finish(names.COMPLETE)
    study = load_study(ledger)
    front = find_front(study)
    assert front.rows == [2, 3] and front.volume == 65 * 7 + 40 * 2
    assert front.means.tolist() == [[60, 6], [60, 6], [65, 7], [40, 9]]
    assert front.repeated is not None
    assert front.repeated.errors[0] == pytest.approx([10, 2])  # deviations 200 ** 0.5 and 8 ** 0.5, over 2 ** 0.5
    assert front.repeated.errors[2] == pytest.approx([200**0.5, 8**0.5])
    assert pick_rows(study, "all") == [2, 3] and pick_rows(study, "best:accuracy") == [2]
    assert main(["demo", "--storage", str(storage), "--json"]) == 0
    printed = capsys.readouterr().out
    assert "65 ± 14" in printed and "front (2 of 4 trials)" in printed
    last = json.loads(printed.splitlines()[-1])
    assert last["front"][0]["standard_errors"] == pytest.approx({"accuracy": 200**0.5, "faithfulness": 8**0.5})
