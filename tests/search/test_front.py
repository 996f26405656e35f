"""The geometry of fronts against brute force, in closed form and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.metrics import ACCURACY, ALIGNMENT, FAITHFULNESS, LOSS, PARAMETERS, SCORE
from study.search.front import (
    attainment,
    dominates,
    hypervolume,
    knee,
    mean_front,
    nondominated,
    ranks,
    reference,
    signs,
)

TWO = (ACCURACY, FAITHFULNESS)
ZERO = np.zeros(2)


def array(points: list, k: int) -> np.ndarray:
    return np.array(points, float).reshape(-1, k)


def rows_of(value: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[list[list[float]], int]]:
    return st.integers(1, 3).flatmap(
        lambda k: st.tuples(st.lists(st.lists(value, min_size=k, max_size=k), max_size=25), st.just(k))
    )


@given(rows_of(st.integers(-3, 3) | st.sampled_from([math.nan, math.inf, -math.inf])))
@settings(max_examples=300, deadline=None)
def test_the_front_is_what_nothing_dominates(drawn: tuple[list[list[float]], int]) -> None:
    """Duplicates stay; what is not finite is not on it and dominates nobody."""
    values = array(*drawn)
    finite = [own for own in values if np.isfinite(own).all()]
    expected = [
        bool(np.isfinite(own).all()) and not any((other >= own).all() and (other > own).any() for other in finite)
        for own in values
    ]
    assert nondominated(values).tolist() == expected


@given(rows_of(st.integers(-2, 2)))
@settings(max_examples=100, deadline=None)
def test_ranks_peel_one_front_after_the_other(drawn: tuple[list[list[float]], int]) -> None:
    values = array(*drawn)
    if not len(values):
        return
    expected, left = np.full(len(values), -1), np.ones(len(values), bool)
    for rank in range(len(values)):
        front = np.flatnonzero(left)[nondominated(values[left])]
        expected[front] = rank
        left[front] = False
    assert ranks(values).tolist() == expected.tolist()


def test_dominance_broadcasts() -> None:
    points = np.array([[1.0, 1.0], [1.0, 0.0], [2.0, 0.0], [math.nan, 0.0]])
    assert dominates(points, points[0]).tolist() == [False] * 4
    assert dominates(points[0], points).tolist() == [False, True, False, False]


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3), max_size=8))
@settings(max_examples=100, deadline=None)
def test_a_configuration_counts_once_with_its_mean(groups: list[list[tuple[int, int]]]) -> None:
    means, on_front = mean_front([np.array(g, float) for g in groups])
    assert len(means) == len(on_front) == len(groups)
    for mean, group in zip(means, groups, strict=True):
        assert mean.tolist() == pytest.approx(np.mean(group, axis=0).tolist())
    assert on_front.tolist() == [not dominates(means, own).any() for own in means]


def test_a_lucky_seed_is_no_point_of_the_front() -> None:
    lucky, steady = np.array([[9.0, 9.0], [1.0, 1.0]]), np.array([[6.0, 6.0]])
    means, on_front = mean_front([lucky, steady])
    assert means.tolist() == [[5, 5], [6, 6]] and on_front.tolist() == [False, True]


@pytest.mark.parametrize(
    ("points", "objectives", "volume"),
    [
        ([[2, 3]], TWO, 6),
        ([[2, 1], [1, 3]], TWO, 4),
        ([[1, 3], [2, 2], [3, 1]], TWO, 6),
        ([[1, 3], [2, 2], [3, 1], [2, 2], [1, 1]], TWO, 6),
        ([[80, -3], [-1, 5], [0, 9]], TWO, 0),
        ([[2, 3], [80, -3]], TWO, 6),
        ([[2, 3], [math.inf, 9], [math.nan, 9]], TWO, 6),
        ([], TWO, 0),
        ([[4], [7]], (SCORE,), 7),
        ([[7], [4]], (LOSS,), 6),
        ([[12]], (LOSS,), 0),
        ([[50, 9], [25, 5]], (ACCURACY, LOSS), 25 * 5 + 25 * 1),
        ([[2, 3, 4]], (ACCURACY, FAITHFULNESS, ALIGNMENT), 24),
        ([[50, 1e8 - 10]], (ACCURACY, PARAMETERS), 500),
    ],
)
def test_hypervolumes_known_in_closed_form(points: list, objectives: tuple, volume: float) -> None:
    values = array(points, len(objectives)) * signs(objectives)
    assert hypervolume(values, reference(objectives)) == pytest.approx(volume)


@pytest.mark.parametrize(
    ("points", "objectives", "expected"),
    [
        ([], TWO, None),
        ([[3, 4]], TWO, 0),
        ([[0, 10], [8, 8], [10, 0]], TWO, 1),
        ([[0, 10], [3, 3], [10, 0]], TWO, 1),  # bends inward: still the middle
        ([[0, 10], [10, 0]], TWO, 0),  # equally far: the first
        ([[80, 1], [70, 0.2], [20, 0.1]], (ACCURACY, LOSS), 1),
        ([[5], [5]], (LOSS,), 0),
        ([[0, 10, 1], [8, 8, 1], [10, 0, 1]], (*TWO, ALIGNMENT), 1),  # the third is the same for all
        ([[0, 1e6], [0.9, 0.9e6], [1, 0]], TWO, 1),  # units do not matter
    ],
)
def test_the_knee_is_nearest_to_the_ideal_point(points: list, objectives: tuple, expected: int | None) -> None:
    assert knee(array(points, len(objectives)) * signs(objectives)) == expected


points_2 = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6)


@given(points_2)
@settings(max_examples=100, deadline=None)
def test_hypervolume_is_what_counting_cells_gives(points: list[tuple[int, int]]) -> None:
    cells = {(i, j) for x, y in points for i in range(x) for j in range(y)}
    assert hypervolume(np.array(points, float), ZERO) == len(cells)


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_hypervolume_of_three_is_what_counting_cells_gives(points: list[tuple[int, int, int]]) -> None:
    cells = {(i, j, k) for x, y, z in points for i in range(x) for j in range(y) for k in range(z)}
    assert hypervolume(np.array(points, float), np.zeros(3)) == len(cells)


@given(points_2, st.permutations(range(6)))
@settings(max_examples=50, deadline=None)
def test_the_front_does_not_depend_on_order(points: list[tuple[int, int]], order: list[int]) -> None:
    values = np.array(points, float)
    order = [i for i in order if i < len(values)]
    assert nondominated(values[order]).tolist() == nondominated(values)[order].tolist()


@given(st.lists(points_2, min_size=2, max_size=5), st.sampled_from([50.0, 100.0]))
@settings(max_examples=60, deadline=None)
def test_attainment_is_what_so_many_fronts_attain(sets: list[list[tuple[int, int]]], percent: float) -> None:
    surface = attainment([np.array(s, float) for s in sets], [percent])[percent]
    for x in range(7):
        for y in range(7):
            reached = sum(any(px >= x and py >= y for px, py in s) for s in sets)
            below = bool(((surface >= [x, y]).all(axis=1)).any())
            assert below == (reached >= percent / 100 * len(sets))
