"""Who goes on at a rung: properties that hold for any values, and what a naive scheduler does on the same cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.search.rungs import Rungs, crowding_distances, standing

MAXIMIZE = ("maximize", "maximize")


def rungs(directions: Sequence[str] = MAXIMIZE, **changes: object) -> Rungs:
    return Rungs(directions, (1, 3), **{"noise_tolerance": 0, **changes})  # type: ignore[arg-type]


def goes_on(values: np.ndarray, i: int, errors: np.ndarray | None = None, **changes: object) -> bool:
    """The pure decision about row ``i``, all others having reported before."""
    n_objectives = values.shape[1]
    directions = changes.pop("directions", ("maximize",) * n_objectives)
    book = rungs(directions, **changes)  # type: ignore[arg-type]
    for j in range(len(values)):
        if j != i:
            book.record(j, 1, values[j])
    return book.add(i, 1, values[i], np.zeros(n_objectives) if errors is None else errors[i])


def distinct(n_objectives: int, least: int = 4, most: int = 14) -> st.SearchStrategy[np.ndarray]:
    """Matrices without equal values within an objective: multiples of 1/8, so that affine maps are exact."""

    def matrix(n: int) -> st.SearchStrategy[np.ndarray]:
        column = st.lists(st.integers(-4000, 4000), min_size=n, max_size=n, unique=True)
        return st.lists(column, min_size=n_objectives, max_size=n_objectives).map(lambda c: np.array(c).T / 8)

    return st.integers(least, most).flatmap(matrix)


@given(distinct(2) | distinct(3), st.data())
def test_a_trial_that_dominates_its_rung_is_never_stopped(values: np.ndarray, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(values) - 1))
    values[i] = values.max(axis=0) + 1
    reduction = data.draw(st.sampled_from([1.5, 2.0, 3.0, 4.0]))
    assert goes_on(values, i, reduction=reduction)


@given(distinct(3), st.data())
def test_permuting_trials_and_objectives_changes_nothing(values: np.ndarray, data: st.DataObject) -> None:
    n = len(values)
    errors = np.abs(values) / 64
    order = data.draw(st.permutations(range(3)))
    shuffled = data.draw(st.permutations(range(n)))
    for i in range(n):
        before = goes_on(values, i, errors, noise_tolerance=1)
        assert goes_on(values[:, order], i, errors[:, order], noise_tolerance=1) == before
        book = rungs(("maximize",) * 3, noise_tolerance=1)
        for j in shuffled:
            if j != i:
                book.record(j, 1, values[j])
        assert book.add(i, 1, values[i], errors[i]) == before


@given(distinct(2), st.sampled_from([0.25, 2.0, 1024.0]), st.integers(-50, 50), st.integers(0, 1))
def test_units_do_not_matter(values: np.ndarray, scale: float, shift: int, j: int) -> None:
    errors = np.abs(values) / 64
    other, other_errors = values.copy(), errors.copy()
    other[:, j] = scale * other[:, j] + shift
    other_errors[:, j] *= scale
    for i in range(len(values)):
        assert goes_on(values, i, errors, noise_tolerance=1) == goes_on(other, i, other_errors, noise_tolerance=1)


@given(distinct(2), st.data())
def test_directions_are_only_signs(values: np.ndarray, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(values) - 1))
    flipped = values * [1, -1]
    assert goes_on(values, i) == goes_on(flipped, i, directions=("maximize", "minimize"))


@given(distinct(2), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 1))
def test_nan_never_survives_a_rung_with_enough_finite_trials(values: np.ndarray, bad: float, j: int) -> None:
    broken = np.vstack([values, values[0]])
    broken[-1, j] = bad
    assert not goes_on(broken, len(values), reduction=3)
    for i in range(len(values)):  # and it does not make room for others
        assert goes_on(broken, i) == goes_on(values, i)


def test_too_few_finite_trials_stop_nobody() -> None:
    values = np.array([[1.0, 1.0], [2.0, 2.0], [math.nan, 1.0]])
    assert goes_on(values, 0, reduction=3) and goes_on(values, 2, reduction=3)
    assert not goes_on(values[:2], 0, reduction=2)


class PlainASHA:
    """Li et al. 2020 in its stopping form, one objective to be maximised: written here for comparison."""

    def __init__(self, reduction: float) -> None:
        self.reduction = reduction
        self.seen: list[float] = []

    def goes_on(self, value: float) -> bool:
        self.seen.append(value)
        n = len(self.seen)
        if n < self.reduction:
            return True
        return value in sorted(self.seen, reverse=True)[: math.ceil(n / self.reduction)]


@given(st.lists(st.integers(-10_000, 10_000), min_size=1, max_size=60, unique=True), st.sampled_from([1.5, 2, 3, 4]))
def test_one_objective_is_plain_asha(values: list[int], reduction: float) -> None:
    plain, ours = PlainASHA(reduction), rungs(("maximize",), reduction=reduction)
    for number, value in enumerate(values):
        assert ours.add(number, 1, [value], [0.0]) == plain.goes_on(value)


def test_a_trial_within_the_noise_of_the_cut_goes_on() -> None:
    values = np.array([[10.0], [8.0], [7.5], [3.0]])
    errors = np.full((4, 1), 0.3)
    for tolerance, expected in ((0, False), (1, False), (2, True)):
        assert goes_on(values, 2, errors, reduction=2, noise_tolerance=tolerance) == expected
    assert not goes_on(values, 3, errors, reduction=2, noise_tolerance=2)
    assert goes_on(values, 0, np.full((4, 1), math.nan), reduction=2, noise_tolerance=1)


def test_rank_comes_before_crowding_and_ends_of_the_front_before_its_middle() -> None:
    front = np.array([[0.0, 10.0], [4.0, 9.0], [5.0, 8.5], [10.0, 0.0], [1.0, 1.0]])
    places = [standing(front, i, np.zeros(5)) for i in range(5)]
    assert sorted(places) == list(range(5))
    assert {places[0], places[3]} == {0, 1} and places[4] == 4
    distances = crowding_distances(front[:4], np.ptp(front, axis=0))
    assert distances[1] == pytest.approx([0, 0.5 + 0.15]) and distances[0] == pytest.approx([2, 2 * (0.4 + 0.1)])


def test_exact_ties_are_decided_by_the_seed() -> None:
    values = np.ones((9, 2))
    kept = {seed: [i for i in range(9) if goes_on(values, i, seed=seed)] for seed in range(4)}
    assert all(len(k) == 3 for k in kept.values())
    assert len({tuple(k) for k in kept.values()}) > 1
    assert kept[0] == [i for i in range(9) if goes_on(values, i, seed=0)]


def test_brackets_begin_later_and_do_not_mix() -> None:
    book = Rungs(MAXIMIZE, (1, 3, 9), brackets=3, noise_tolerance=0)
    brackets = [book.bracket(n) for n in range(400)]
    counts = [brackets.count(b) for b in range(3)]
    assert counts[0] > counts[1] > counts[2] > 0
    late = brackets.index(1)
    assert not book.compared(late, 1) and book.compared(late, 3)
    early = [n for n, b in enumerate(brackets) if b == 0][:20]
    for number in early:
        book.record(number, 3, [100.0, 100.0])
    assert book.add(late, 3, [0.0, 0.0], [0, 0]), "compared with another bracket's"


def test_the_same_report_twice_decides_nothing_anew() -> None:
    book = rungs()
    for number in range(6):
        book.record(number, 1, [number, number])
    assert not book.add(7, 1, [-1.0, -1.0], [0, 0])
    assert book.add(7, 1, [-1.0, -1.0], [0, 0]) and book.add(8, 2, [-1.0, -1.0], [0, 0])


def test_naive_priorities_stop_dominating_trials_and_ours_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Syne Tune's MO-ASHA takes the sorted indices of a non-dominated sort for priorities."""
    generator = np.random.default_rng(0)
    wrong = {"ours": 0, "naive": 0}
    cases = 300
    for _ in range(cases):
        values = generator.random((9, 2))
        best = int(generator.integers(9))
        values[best] = 2.0
        wrong["ours"] += not goes_on(values, best)
        places = np.array([standing(values, i, np.zeros(9)) for i in range(9)])
        priorities = np.argsort(places)  # indices in sorted order, read as if they were priorities
        wrong["naive"] += not priorities[best] < 3
    with capsys.disabled():
        print(f"\nwrong stops of a dominating trial: { ({k: f'{v / cases:.0%}' for k, v in wrong.items()}) }")
    assert wrong["ours"] == 0 and wrong["naive"] > cases / 3


def test_without_levels_nobody_is_compared() -> None:
    book = Rungs(MAXIMIZE, ())
    assert not book.compared(0, 1) and book.add(0, 1, [1.0, 1.0], [0, 0])
