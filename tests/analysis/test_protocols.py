"""Scores of two protocols in one study: told, kept apart, never compared."""

from __future__ import annotations

import pytest
from made_studies import MakeStudy, invented_table, scored

from analysis.pareto import print_front
from analysis.statistics.front import find_front
from analysis.table import StudyTable, objectives_of, trials_table
from analysis.twins import compare_pair, find_twins
from study import names
from study.ledger import TrialRecord


def study_of(*protocols: str | None, state: str = names.COMPLETE) -> StudyTable:
    """Trial i has accuracy and faithfulness i; λ is 0 for even trials, and nothing else differs."""
    spec = {"objectives": {"accuracy": "maximize", "faithfulness": "maximize"}}
    records = [
        TrialRecord(
            f"{i:032x}", i, 0, state, {"reg_weight": float(i % 2)}, scored(float(i), float(i)),
            {} if protocol is None else {names.TAG_PROTOCOL: protocol}, 1000 * i, 1000 * i + 500,
        )
        for i, protocol in enumerate(protocols)
    ]  # fmt: skip
    table, params = trials_table("mixed", spec, records)
    return StudyTable("mixed", spec, objectives_of("mixed", spec), params, table)


@pytest.mark.parametrize("protocol", ["paper/1", "paper/2", None])
def test_a_study_of_one_protocol_is_analysed_as_it_is(protocol: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(protocol, protocol)
    assert study.other_protocol() == ["", ""]
    front = find_front(study)
    assert front.eligible.tolist() == [True, True]
    print_front(study, front)
    assert "scored under" not in capsys.readouterr().out


def test_of_two_protocols_the_latest_has_the_front(capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of("paper/2", "paper/10", "paper/2", None)
    assert study.other_protocol() == ["scored under paper/2", "", "scored under paper/2", ""]
    front = find_front(study)
    assert front.eligible.tolist() == [False, True, False, True]
    print_front(study, front)
    said = capsys.readouterr().out
    assert "2 complete trials are scored under paper/2, so they are not on the front; `python -m study.rescore" in said
    assert "no finite" not in said


def test_trials_that_are_not_complete_have_no_part_in_it() -> None:
    assert study_of("paper/1", "paper/2", state=names.STOPPED).other_protocol() == ["", ""]


def test_twins_of_two_protocols_do_not_compare(make_study: MakeStudy) -> None:
    ledger = make_study([])
    study = study_of("paper/1", "paper/2")
    (pair,) = find_twins(study, find_front(study).mask)
    compared = compare_pair(ledger, study, pair)
    assert compared.differences is None
    assert compared.why_not == "they are scored under paper/2 and paper/1; python -m study.rescore mixed"


def test_a_parameter_that_older_runs_do_not_have_is_at_its_default() -> None:
    study = invented_table(
        [(0, {"lr": 0.1}, scored(1, 1)), (0, {"lr": 0.1, "evaluation.shifts": 1, "crop_mode": "zero"}, scored(2, 2))]
    )
    assert study.column("crop_mode") == ["zero", "zero"] and study.column("evaluation.shifts") == [1, 1]
    assert len(set(study.configurations)) == 1
