"""Knee and attainment against brute force and by hand. Dominance and hypervolume stand in test_pareto.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.metrics import ACCURACY, ALIGNMENT, FAITHFULNESS, LOSS
from study.search.front import attainment, hypervolume, knee, nondominated

TWO = (ACCURACY, FAITHFULNESS)


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
    assert knee(np.array(points, float).reshape(-1, len(objectives)), objectives) == expected


points_2 = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6)


@given(points_2)
@settings(max_examples=100, deadline=None)
def test_hypervolume_is_what_counting_cells_gives(points: list[tuple[int, int]]) -> None:
    cells = {(i, j) for x, y in points for i in range(x) for j in range(y)}
    assert hypervolume(np.array(points, float), TWO) == len(cells)


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_hypervolume_of_three_is_what_counting_cells_gives(points: list[tuple[int, int, int]]) -> None:
    cells = {(i, j, k) for x, y, z in points for i in range(x) for j in range(y) for k in range(z)}
    assert hypervolume(np.array(points, float), (*TWO, ALIGNMENT)) == len(cells)


@given(points_2, st.permutations(range(6)))
@settings(max_examples=50, deadline=None)
def test_the_front_does_not_depend_on_order(points: list[tuple[int, int]], order: list[int]) -> None:
    values = np.array(points, float)
    order = [i for i in order if i < len(values)]
    assert nondominated(values[order], TWO).tolist() == nondominated(values, TWO)[order].tolist()


@given(st.lists(points_2, min_size=2, max_size=5), st.sampled_from([50.0, 100.0]))
@settings(max_examples=60, deadline=None)
def test_attainment_is_what_so_many_fronts_attain(sets: list[list[tuple[int, int]]], percent: float) -> None:
    surface = attainment([np.array(s, float) for s in sets], TWO, [percent])[percent]
    for x in range(7):
        for y in range(7):
            reached = sum(any(px >= x and py >= y for px, py in s) for s in sets)
            below = bool(((surface >= [x, y]).all(axis=1)).any())
            assert below == (reached >= percent / 100 * len(sets))
