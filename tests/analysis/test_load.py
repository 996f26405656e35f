"""The table of trials: types, labels, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pytest
from made_studies import MakeStudy, scored

from analysis.load import FIXED, load_study
from study import metrics
from study.errors import InputError


def test_columns_have_the_types_of_their_values(make_study: MakeStudy) -> None:
    first = {"lr": 1, "flip": True, "rungs": [2, 4], "batch_size": 64, "clip_norm": None, "data": {"source": "shapes"}}
    second = {**first, "lr": 0.5, "reg_error": "mse"}
    rows = [(metrics.COMPLETE, p, scored(50, 5, **{"time/epoch_seconds": 2.0}), []) for p in (first, second)]
    study = load_study(make_study(rows))
    schema = study.trials.schema
    for field in FIXED:
        assert schema.field(field.name) == field
    expected = {
        "lr": pa.float64(),
        "flip": pa.bool_(),
        "rungs": pa.string(),
        "batch_size": pa.int64(),
        "data.source": pa.string(),
        "val/accuracy": pa.float64(),
        "time/epoch_seconds": pa.float64(),
    }
    assert {name: schema.field(name).type for name in expected} == expected
    assert study.column("rungs") == ["[2, 4]", "[2, 4]"]
    assert study.column("reg_error") == [None, "mse"]
    assert study.column("clip_norm") == [None, None]
    assert study.varied() == ["lr", "reg_error"]
    assert all(d >= 0 for d in study.column("duration_s"))
    assert "seed" not in study.params


def test_a_running_trial_has_no_duration(make_study: MakeStudy) -> None:
    assert load_study(make_study([(metrics.RUNNING, {}, scored(1, 1), [])])).column("duration_s") == [None]


def test_a_specification_with_unknown_objectives_is_refused(make_study: MakeStudy) -> None:
    with pytest.raises(InputError, match="unknown objective 'beauty'"):
        load_study(make_study([], objectives={"beauty": "maximize"}))


def test_a_foreign_state_is_refused(make_study: MakeStudy) -> None:
    ledger = make_study([(metrics.COMPLETE, {}, scored(1, 1), [])])
    ledger._client.set_tag(ledger.trials()[0].run_id, metrics.TAG_STATE, "happy")
    with pytest.raises(InputError, match="unknown state 'happy'"):
        load_study(ledger)


def test_a_param_that_would_hide_a_column_is_refused(make_study: MakeStudy) -> None:
    with pytest.raises(InputError, match="param named 'accuracy'"):
        load_study(make_study([(metrics.COMPLETE, {"accuracy": 1.0}, scored(1, 1), [])]))
