"""Which networks are exported, and what they are to their study."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from made_studies import MakeStudy, scored

from analysis.export.picks import folder_name, pick_rows, roles
from analysis.load import load_study
from analysis.table import StudyTable
from study import names
from study.errors import InputError


def made(
    make_study: MakeStudy, points: list[dict[str, float]], objectives: Mapping[str, str] | None = None
) -> StudyTable:
    return load_study(make_study([(names.COMPLETE, {}, p, []) for p in points], objectives))


def test_all_knee_and_best(make_study: MakeStudy) -> None:
    points = [scored(90, 0), scored(85, 8), scored(50, 9), scored(80, 1), scored(99, float("nan"))]
    study = made(make_study, points)
    assert pick_rows(study, "all") == [0, 1, 2]
    assert pick_rows(study, "knee") == [1]
    assert pick_rows(study, "best:accuracy") == [0]
    assert pick_rows(study, "best:faithfulness") == [2]
    assert roles(study) == {1: ["knee"], 0: ["best-accuracy"], 2: ["best-faithfulness"]}


def test_a_single_point_has_every_role(make_study: MakeStudy) -> None:
    study = made(make_study, [scored(90, 5), scored(80, 1)])
    assert roles(study) == {0: ["knee", "best-accuracy", "best-faithfulness"]}


def test_of_equals_the_one_on_the_front_then_the_first(make_study: MakeStudy) -> None:
    study = made(make_study, [scored(90, 1), scored(90, 3), scored(90, 3), scored(10, 4)])
    assert pick_rows(study, "best:accuracy") == [1]


def test_what_is_minimised_is_best_where_it_is_lowest(make_study: MakeStudy) -> None:
    points = [scored(90, 1, **{"val/loss": 2.0}), scored(80, 1, **{"val/loss": 0.5})]
    study = made(make_study, points, {"accuracy": "maximize", "loss": "minimize"})
    assert pick_rows(study, "best:loss") == [1]
    with pytest.raises(InputError, match="has no alignment; choose all, knee or best:accuracy, best:loss"):
        pick_rows(study, "best:alignment")


def test_nothing_to_pick(make_study: MakeStudy) -> None:
    study = load_study(make_study([(names.RUNNING, {}, scored(90, 1), [])]))
    assert roles(study) == {}
    with pytest.raises(InputError, match="no complete trial"):
        pick_rows(study, "knee")


def test_folders_are_named_after_trials(make_study: MakeStudy) -> None:
    assert folder_name(made(make_study, [scored(90, 1)]), 0) == "trial-0000"
