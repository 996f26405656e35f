"""Which points of an earlier study are tried again: those of its front, by its own constraints."""

from __future__ import annotations

import math
from pathlib import Path

from study import names
from study.ledger import TrialRecord
from study.metrics import UNDEFINED_SHARE
from study.search.warm_start import _front_first
from study.spec.study_spec import load_spec
from study.spec.terms import Constraint

SPEC = load_spec(Path(__file__).parents[1] / "spec" / "example.yaml")


def test_only_points_that_could_be_on_the_earlier_front_are_tried_and_those_that_go_on() -> None:
    scores = [(20.0, 9.0, 0.0), (15.0, 30.0, 80.0), (8.0, 40.0, 0.0), (18.0, 3.0, 0.0), (19.0, math.nan, 0.0)]
    others = []
    for i, (accuracy, faithfulness, share) in enumerate(scores):
        report = {"val/accuracy": accuracy, "val/faithfulness": faithfulness, UNDEFINED_SHARE.ledger_name: share}
        record = TrialRecord(str(i), i, 0, names.COMPLETE, {}, report, {}, 0, 1)
        others.append((record, {"lr": 0.1 + 0.01 * i}, i == 3))
    found = _front_first(SPEC, others, {"accuracy": Constraint(min=10)})
    assert [record.trial for record, *_ in found] == [0, 3]  # 3 goes on from its checkpoint
    assert [record.trial for record, *_ in _front_first(SPEC, others, {})] == [0, 2, 3]
