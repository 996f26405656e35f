"""The table of trials: types, labels, and what is refused."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from made_studies import MakeStudy, scored
from pyarrow import parquet

from analysis.load import load_curves, load_study, main
from analysis.table import CURVES, FIXED
from study import names
from study.errors import ArtifactError, LedgerError
from study.ledger import Ledger, default_tracking_uri
from study.ledger.sql import DatabaseReader


def test_columns_have_the_types_of_their_values(make_study: MakeStudy) -> None:
    first = {"lr": 1, "flip": True, "rungs": [2, 4], "batch_size": 64, "clip_norm": None, "data": {"source": "shapes"}}
    first["reg_error"] = None
    second = {**first, "lr": 0.5, "reg_error": "mse"}
    rows = [(names.COMPLETE, p, scored(50, 5, **{"time/epoch_seconds": 2.0}), []) for p in (first, second)]
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
    assert load_study(make_study([(names.RUNNING, {}, scored(1, 1), [])])).column("duration_s") == [None]


def test_a_specification_with_unknown_objectives_is_refused(make_study: MakeStudy) -> None:
    with pytest.raises(ArtifactError, match="unknown objective 'beauty'"):
        load_study(make_study([], objectives={"beauty": "maximize"}))


def test_a_foreign_state_is_refused(make_study: MakeStudy) -> None:
    ledger = make_study([(names.COMPLETE, {}, scored(1, 1), [])])
    ledger._client.set_tag(ledger.trials()[0].run_id, names.TAG_STATE, "happy")
    with pytest.raises(ArtifactError, match="unknown state 'happy'"):
        load_study(ledger)


def test_a_param_that_would_hide_a_column_is_refused(make_study: MakeStudy) -> None:
    with pytest.raises(ArtifactError, match="param named 'accuracy'"):
        load_study(make_study([(names.COMPLETE, {"accuracy": 1.0}, scored(1, 1), [])]))


def test_curves_hold_every_value_once_and_the_latest(make_study: MakeStudy) -> None:
    ledger = make_study([(names.COMPLETE, {}, scored(50, 5), []), (names.FAILED, {}, {"val/accuracy": 7.0}, [])])
    run_id = ledger.trials()[0].run_id
    now = int(time.time() * 1000) + 60_000
    ledger._client.log_metric(run_id, "val/accuracy", 60.0, timestamp=now + 1, step=2)
    ledger._client.log_metric(run_id, "val/accuracy", 61.0, timestamp=now + 2, step=2)  # an epoch sent twice
    ledger._client.log_metric(run_id, "val/faithfulness", math.nan, timestamp=now, step=2)
    ledger._client.log_metric(run_id, "system/cpu", 1.0, timestamp=now, step=2)
    curves = load_curves(ledger, load_study(ledger))
    assert curves.schema == CURVES
    rows = {(r["run_id"] == run_id, r["metric"], r["epoch"]): r["value"] for r in curves.to_pylist()}
    assert len(rows) == len(curves) == 5
    assert math.isnan(rows.pop((True, "val/faithfulness", 2)))
    assert rows == {
        (True, "val/accuracy", 1): 50.0,
        (True, "val/accuracy", 2): 61.0,
        (True, "val/faithfulness", 1): 5.0,
        (False, "val/accuracy", 1): 7.0,
    }


def test_only_what_changed_is_read_again(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make_study([(names.COMPLETE, {"lr": 1}, scored(50, 5), []), (names.RUNNING, {"lr": 1}, {}, [])])
    running = ledger.open_trial(1, 0, {}, {})
    asked: list[list[str]] = []
    for name in ("records", "histories"):
        real = getattr(DatabaseReader, name)

        def spied(self: Any, run_ids: list[str], *rest: Any, real: Any = real) -> Any:
            asked.append(list(run_ids))
            return real(self, run_ids, *rest)

        monkeypatch.setattr(DatabaseReader, name, spied)

    def read() -> tuple[pa.Table, pa.Table, list[list[str]]]:
        asked.clear()
        study = load_study(ledger, tmp_path)
        return study.trials, load_curves(ledger, study, tmp_path), list(asked)

    first = read()
    assert [len(ids) for ids in first[2]] == [2, 2]
    again = read()
    assert again[2] == [] and again[0].equals(first[0]) and again[1].equals(first[1])
    running.sync([{"epoch": 1, "val/accuracy": 10.0}, {"epoch": 2, "val/accuracy": 20.0}])
    third = read()
    assert third[2] == [[running.run_id]] * 2
    running.finish(names.COMPLETE, scores=scored(30, 3))
    ledger._client.log_param(running.run_id, "clip", "0.5")
    last = read()
    assert last[0]["state"].to_pylist() == [names.COMPLETE] * 2 and last[0]["clip"].to_pylist() == [None, 0.5]
    whole = load_study(ledger)
    assert last[0].equals(whole.trials)
    assert last[1].to_pylist() == load_curves(ledger, whole).to_pylist()
    ledger._client.delete_run(running.run_id)
    assert read()[0]["trial"].to_pylist() == [0]
    assert set(read()[1]["run_id"].to_pylist()) == {ledger.trials()[0].run_id}


def test_damaged_or_foreign_kept_files_are_read_anew(make_study: MakeStudy, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    ledger = make_study([(names.COMPLETE, {}, scored(50, 5), [])])
    study = load_study(ledger, kept)
    curves = load_curves(ledger, study, kept)
    for content in (b"", b"PAR1", b"x" * 999):
        for file in kept.iterdir():
            file.write_bytes(content)
        assert load_study(ledger, kept).trials.equals(study.trials)
        assert load_curves(ledger, study, kept).equals(curves)
    other = make_study([(names.COMPLETE, {}, scored(1, 1), [])], name="other")
    assert load_study(other, kept).column("accuracy") == [1]


def test_an_empty_study_has_empty_tables(make_study: MakeStudy, tmp_path: Path) -> None:
    ledger = make_study([])
    for cache in (None, tmp_path):
        study = load_study(ledger, cache)
        assert len(study.trials) == 0 and study.trials.schema.names[: len(FIXED)] == FIXED.names
        assert len(load_curves(ledger, study, cache)) == 0
    assert study.values().shape == (0, 2)


def test_the_command_writes_both_tables(
    make_study: MakeStudy, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study([(names.COMPLETE, {}, scored(50, 5), []), (names.STOPPED, {}, scored(5, 1), [])])
    assert main(["demo", "--storage", str(storage)]) == 0
    assert "2 trials (1 complete, 1 stopped) · 4 values" in capsys.readouterr().out
    folder = storage / "demo" / "analysis"
    assert parquet.read_table(folder / "trials.parquet")["state"].to_pylist() == ["complete", "stopped"]
    assert parquet.read_table(folder / "curves.parquet")["value"].to_pylist().count(50.0) == 1
    assert main(["demo", "--storage", str(storage), "--fresh"]) == 0


@pytest.mark.slow
def test_a_server_gives_the_same_tables(make_study: MakeStudy, storage: Path, tmp_path: Path) -> None:
    rows = [(names.COMPLETE, {"lr": 0.5}, scored(50, math.nan), []), (names.FAILED, {"lr": 1}, {}, [])]
    ledger = make_study(rows)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--backend-store-uri", ledger.tracking_uri], env=environment, stdout=log, stderr=log
        )
    try:
        remote = Ledger(f"http://127.0.0.1:{port}", "demo")
        for _ in range(120):
            with contextlib.suppress(LedgerError):
                remote.record()
                break
            time.sleep(0.5)
        here, there = load_study(ledger), load_study(remote, tmp_path / "kept")
        assert repr(there.trials.to_pylist()) == repr(here.trials.to_pylist())  # NaN is not equal to NaN
        curves = load_curves(remote, there, tmp_path / "kept")
        assert repr(curves.to_pylist()) == repr(load_curves(ledger, here).to_pylist())
        assert len(curves) == 2
        assert repr(load_curves(remote, there, tmp_path / "kept").to_pylist()) == repr(curves.to_pylist())
    finally:
        server.terminate()
        server.wait(30)


def test_ten_thousand_invented_runs_in_small(storage: Path, tmp_path: Path) -> None:
    from benchmarks.synthetic import write_runs

    ledger = Ledger(default_tracking_uri(storage), "large")
    write_runs(ledger, 0, 60)
    study = load_study(ledger, tmp_path)
    assert study.counts() == {"complete": 42, "stopped": 12, "failed": 6}
    assert len(set(study.configurations)) == 30
    assert len(load_curves(ledger, study, tmp_path)) > 60 * 3 * 9
