"""Which configuration is repeated next."""

from __future__ import annotations

import pytest

from study.search.racing import most_uncertain

BOTH = ("maximize", "maximize")


def test_the_one_near_the_front_is_repeated_not_the_hopeless_nor_the_sure() -> None:
    sure, near, near_too, hopeless = [[90.0, 9.0]], [[80.0, 12.0]], [[79.5, 11.9]], [[10.0, 1.0]]
    assert most_uncertain([sure, near, near_too, hopeless], BOTH, seed=0) in (1, 2)


def test_more_results_make_it_surer() -> None:
    pair = [[80.0, 12.0], [80.4, 11.8], [79.8, 12.2], [80.1, 12.0], [79.7, 12.1], [80.2, 11.9]]
    single = [[80.05, 12.05]]
    assert most_uncertain([pair, single, [[10.0, 1.0]]], BOTH, seed=0) == 1


@pytest.mark.parametrize("directions", [("minimize", "maximize"), BOTH])
def test_directions_and_units(directions: tuple[str, str]) -> None:
    sign = -1 if directions[0] == "minimize" else 1
    groups = [[[sign * 9000.0, 0.9]], [[sign * 8000.0, 1.2]], [[sign * 7950.0, 1.19]], [[sign * 1000.0, 0.1]]]
    assert most_uncertain(groups, directions, seed=0) in (1, 2)


def test_nothing_to_repeat_and_the_same_seed_the_same_choice() -> None:
    assert most_uncertain([], BOTH, seed=0) is None
    groups = [[[1.0, 5.0]], [[2.0, 4.0]], [[3.0, 3.0]]]
    assert most_uncertain(groups, BOTH, seed=3) == most_uncertain(groups, BOTH, seed=3)
