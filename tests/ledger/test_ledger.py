"""The ledger against the real MLflow: nothing twice, nothing lost, whoever is killed or comes second."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from study import names
from study.errors import ArtifactError, InputError, LedgerError, StorageError
from study.ledger import Ledger, create_store, default_tracking_uri
from study.ledger.records import EPOCH_METRIC
from tests.ledger.stored import history_of, run_of

PARAMS = {
    "network": "tiny",
    "reg_weight": 0.21,
    "reg_error": None,
    "flip": True,
    "rungs": [2, 4],
    "lr": 1e-3,
    "data": {"source": "shapes", "split_seed": 0, "note": "0.5"},
}


def report(epoch: int, **values: float) -> dict[str, float]:
    return {"epoch": epoch, "val/accuracy": 10.0 * epoch, **values}


def test_importing_the_ledger_imports_no_mlflow() -> None:
    code = "import sys, study.ledger; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_opening_a_study_again_finds_it_and_updates_its_specification(ledger: Ledger, tracking_uri: str) -> None:
    first = ledger.record()
    again = Ledger(tracking_uri, "demo")
    long = {"objectives": {"accuracy": "maximize"}, "known_points": ["x" * 50] * 300}
    assert again.open_study(fingerprint="f" * 64, spec=long, tags={}, artifact_location=None) == first.run_id
    assert again.record().spec == long
    short = {"objectives": {}}
    assert again.open_study(fingerprint="f" * 64, spec=short, tags={}, artifact_location=None) == first.run_id
    assert Ledger(tracking_uri, "demo").record().spec == short
    assert first.tags["a"] == "b"
    assert first.fingerprint == "f" * 64


def test_a_name_with_another_fingerprint_is_refused(tracking_uri: str, ledger: Ledger) -> None:
    with pytest.raises(InputError, match="another specification"):
        Ledger(tracking_uri, "demo").open_study(fingerprint="e" * 64, spec={}, tags={}, artifact_location=None)


def test_a_trial_is_read_back_as_it_was_written(ledger: Ledger) -> None:
    run = ledger.open_trial(7, 3, PARAMS, {"extra": "yes"})
    (record,) = ledger.trials()
    assert (record.run_id, record.trial, record.seed, record.state) == (run.run_id, 7, 3, names.RUNNING)
    data = record.params.pop("data.source"), record.params.pop("data.split_seed"), record.params.pop("data.note")
    assert data == ("shapes", 0, "0.5")
    assert record.params == {k: v for k, v in PARAMS.items() if k != "data"}
    assert record.tags["extra"] == "yes"
    assert record.tags["mlflow.runName"] == "0007 tiny λ=0.21"
    assert record.tags["mlflow.parentRunId"] == ledger.record().run_id
    assert record.tags[names.TAG_KEY] == "demo/7/3"
    assert record.end_ms is None


def test_a_trial_opened_again_is_the_same_run_set_back_to_running(ledger: Ledger, tracking_uri: str) -> None:
    run = ledger.open_trial(0, 0, PARAMS, {})
    run.sync([report(1)])
    run.finish(names.FAILED, reason="its worker died")
    (ended,) = ledger.trials()
    assert (ended.state, ended.tags[names.TAG_REASON]) == (names.FAILED, "its worker died")
    assert ended.end_ms is not None

    again = Ledger(tracking_uri, "demo").open_trial(0, 0, {**PARAMS, "data": {"source": "/elsewhere"}}, {"new": "1"})
    assert again.run_id == run.run_id
    (record,) = ledger.trials()
    assert record.state == names.RUNNING
    assert names.TAG_REASON not in record.tags
    assert record.tags["new"] == "1"
    assert run_of(ledger, run.run_id).info.status == "RUNNING"
    assert ledger.open_trial(0, 1, PARAMS, {}).run_id != run.run_id
    assert ledger.open_trial(1, 0, PARAMS, {}).run_id != run.run_id


def test_params_that_a_crash_kept_from_the_run_are_completed(ledger: Ledger) -> None:
    run = ledger.open_trial(0, 0, {"network": "tiny"}, {})
    assert ledger.open_trial(0, 0, PARAMS, {}).run_id == run.run_id
    assert ledger.trials()[0].params["lr"] == 1e-3


def test_histories_are_not_doubled_by_syncing_or_resuming(ledger: Ledger, tracking_uri: str) -> None:
    run = ledger.open_trial(0, 0, PARAMS, {})
    run.sync([report(1)])
    run.sync([report(1), report(2)])
    run.sync([report(1), report(2)])
    resumed = Ledger(tracking_uri, "demo").open_trial(0, 0, PARAMS, {})
    resumed.sync([report(1), report(2), report(3)])
    resumed.finish(names.COMPLETE, scores=report(3, extra=1.0))
    resumed.finish(names.COMPLETE, scores=report(3, extra=1.0))
    assert history_of(ledger, run.run_id, "val/accuracy") == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert history_of(ledger, run.run_id, EPOCH_METRIC) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert history_of(ledger, run.run_id, "extra") == [(3, 1.0)]
    assert history_of(ledger, run.run_id, "never/logged") == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_stored_as_nan(ledger: Ledger, value: float) -> None:
    run = ledger.open_trial(0, 0, PARAMS, {})
    run.sync([report(1, score=1.0), report(2, score=value)])
    run.finish(names.COMPLETE, scores={"score": value})
    assert math.isnan(ledger.trials()[0].metrics["score"])
    assert len(history_of(ledger, run.run_id, "score")) == 2


def test_finishing_twice_keeps_one_artifact_and_one_end(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / names.MODEL_FILE
    file.write_bytes(b"weights")
    run = ledger.open_trial(0, 0, PARAMS, {})
    run.finish(names.COMPLETE, files=[file], tags={names.TAG_PROTOCOL: "paper/1"})
    (first,) = ledger.trials()
    stored = ledger.download(run.run_id, f"{names.CHECKPOINT_ARTIFACTS}/{file.name}", tmp_path / "down")
    assert stored.read_bytes() == b"weights"
    (place,) = (tmp_path / "demo" / "artifacts").rglob(names.MODEL_FILE)
    written = place.stat().st_mtime_ns
    run.finish(names.COMPLETE, files=[file], tags={names.TAG_PROTOCOL: "paper/1"})
    assert ledger.trials() == [first]
    assert place.stat().st_mtime_ns == written
    assert first.tags[names.TAG_PROTOCOL] == "paper/1"


def test_an_upload_cut_short_is_repeated(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / names.MODEL_FILE
    file.write_bytes(b"wei")
    run = ledger.open_trial(0, 0, PARAMS, {})
    run.finish(names.COMPLETE, files=[file])
    file.write_bytes(b"weights")
    run.finish(names.COMPLETE, files=[file])
    stored = ledger.download(run.run_id, f"{names.CHECKPOINT_ARTIFACTS}/{file.name}", tmp_path / "down")
    assert stored.read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (names.COMPLETE, "FINISHED"),
        (names.STOPPED, "FINISHED"),
        (names.DIVERGED, "FAILED"),
        (names.FAILED, "FAILED"),
    ],
)
def test_states_map_to_statuses(ledger: Ledger, state: str, status: str) -> None:
    run = ledger.open_trial(0, 0, {}, {})
    run.finish(state, reason="why")
    assert run_of(ledger, run.run_id).info.status == status
    assert ledger.trials()[0].state == state


def test_running_is_no_end(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="not the end"):
        ledger.open_trial(0, 0, {}, {}).finish(names.RUNNING)


def test_test_openings_are_counted(ledger: Ledger) -> None:
    run = ledger.open_trial(0, 0, {}, {})
    assert ledger.log_test_opening(run.run_id, "export", "2026-01-02T03:04:05+00:00") == 1
    assert ledger.log_test_opening(run.run_id, "export", "2026-01-02T03:04:06+00:00") == 2
    assert any("export" in v for k, v in ledger.trials()[0].tags.items() if k.startswith("study.test_opening/"))


def test_an_unknown_study_names_those_that_exist(tracking_uri: str, ledger: Ledger) -> None:
    for read in (Ledger.trials, Ledger.record):
        with pytest.raises(InputError, match="'demi' is not in the ledger .*there are demo"):
            read(Ledger(tracking_uri, "demi"))


def test_reading_a_ledger_that_does_not_exist_creates_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is none"):
        Ledger(default_tracking_uri(tmp_path), "demo").trials()
    assert not list(tmp_path.iterdir())


def test_a_missing_artifact_is_one_line(ledger: Ledger, tmp_path: Path) -> None:
    run = ledger.open_trial(0, 0, {}, {})
    with pytest.raises(ArtifactError, match="cannot be had"):
        ledger.download(run.run_id, "checkpoint/model.safetensors", tmp_path / "down")


def test_an_unreachable_server_is_refused_quickly() -> None:
    with socket.socket() as reserved:  # bound and not listening: nothing else can answer there
        reserved.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{reserved.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(LedgerError, match="no answer") as refused:
            create_store(uri)
    assert time.monotonic() - start < 6
    assert "secret" not in str(refused.value)


@pytest.mark.slow
def test_a_silent_server_is_refused_within_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(LedgerError, match="no answer"):
            Ledger(f"http://127.0.0.1:{silent.getsockname()[1]}", "demo").trials()
        assert time.monotonic() - start < 8


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_the_file_store_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="no file store"):
        create_store(uri)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not SQLite" * 100)
    with pytest.raises(LedgerError, match="cannot open"):
        create_store(default_tracking_uri(tmp_path))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be created"):
        create_store(default_tracking_uri(tmp_path / "file" / "results"))


def test_a_ledger_travels_to_another_process(ledger: Ledger) -> None:
    ledger.open_trial(0, 0, {}, {})
    assert len(pickle.loads(pickle.dumps(ledger)).trials()) == 1


def _open_and_write(uri: str, worker: int, trials: list[int], epochs: int) -> None:
    """What one worker process of a study does, and what two commands that start at once do."""
    ledger = Ledger(uri, "demo")
    ledger.open_study(fingerprint="f" * 64, spec={}, tags={}, artifact_location=None)
    for trial in trials:
        run = ledger.open_trial(trial, 0, PARAMS, {"worker": str(worker)})
        for epoch in range(1, epochs + 1):
            run.sync([report(e) for e in range(1, epoch + 1)])
        run.finish(names.COMPLETE, scores=report(epochs))


@pytest.mark.slow
def test_processes_that_start_at_once_on_no_store_share_one_study(tmp_path: Path) -> None:
    uri = default_tracking_uri(tmp_path)
    context = multiprocessing.get_context("spawn")
    mine = [[0, 2, 4], [1, 3, 5]]
    workers = [context.Process(target=_open_and_write, args=(uri, w, mine[w], 10)) for w in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [w.exitcode for w in workers] == [0, 0]
    ledger = Ledger(uri, "demo")
    records = ledger.trials()
    assert [r.trial for r in records] == [0, 1, 2, 3, 4, 5]
    assert {r.state for r in records} == {names.COMPLETE}
    for record in records:
        assert history_of(ledger, record.run_id, "val/accuracy") == [(e, 10.0 * e) for e in range(1, 11)]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("demo").experiment_id
    assert len(client.search_runs([experiment], f"tags.`{names.TAG_ROLE}` = 'study'")) == 1


def _write_and_die(uri: str) -> None:
    run = Ledger(uri, "demo").open_trial(0, 0, PARAMS, {})
    for epoch in range(1, 100):
        run.sync([report(epoch)])
        if epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_is_continued_in_the_same_run(ledger: Ledger, tracking_uri: str) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tracking_uri,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    (left,) = ledger.trials()
    assert left.state == names.RUNNING
    run = ledger.open_trial(0, 0, PARAMS, {})
    assert run.run_id == left.run_id
    run.sync([report(e) for e in range(1, 6)])
    assert history_of(ledger, run.run_id, "val/accuracy") == [(e, 10.0 * e) for e in range(1, 6)]


def test_the_studys_own_run_ends_and_starts_again(ledger: Ledger) -> None:
    def status() -> str:
        return run_of(ledger, ledger.record().run_id).info.status

    assert status() == "RUNNING"
    ledger.close_study(complete=False)
    assert status() == "KILLED"
    ledger.open_study(fingerprint="f" * 64, spec={}, tags={}, artifact_location=None)
    assert status() == "RUNNING"
    ledger.close_study(complete=True)
    assert status() == "FINISHED"
