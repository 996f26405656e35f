"""Trials written beside the training: ledgers that go away and come back, attempts that are taken over."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from study import names
from study.ledger import DataInput, Ledger, SupersededError, TrialWriter, attempts, close_session, replay
from study.ledger import ledger as ledger_module
from study.ledger import run as run_module
from study.ledger import writer as writer_module
from study.ledger.attempts import new_attempt
from study.ledger.experiment import Experiment
from study.ledger.journal import Journal
from study.ledger.metric_writes import write_numbers
from study.storage.storage import Storage
from tests.ledger.stored import history_of, run_of

PARAMS = {"network": "tiny", "reg_weight": 0.5}


def report(epoch: int, **values: float) -> dict[str, float]:
    return {"epoch": epoch, "val/accuracy": 10.0 * epoch, **values}


def new_writer(ledger: Ledger, folder: Path, **more: object) -> TrialWriter:
    own = Ledger(ledger.tracking_uri, ledger.study)
    writer = TrialWriter(own, folder, trial=0, seed=0, params=PARAMS, tags={"a": "b"}, **more)
    writer.start()
    return writer


def journals(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{names.JOURNAL}*"))


@pytest.fixture
def trial_folder(tmp_path: Path) -> Path:
    return tmp_path / "trials" / "0000"


def break_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the server were away: whoever is not connected yet is refused."""

    def away(tracking_uri: str) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(ledger_module, "connect", away)


def test_what_is_told_arrives_once_and_in_order(ledger: Ledger, trial_folder: Path) -> None:
    writer = new_writer(ledger, trial_folder, inputs=[DataInput("shapes", "d" * 32, "shapes", "training", 100)])
    history = [report(1, loss=math.inf)]
    writer.report(history)
    history.append(report(2))
    writer.report(history)
    writer.report(history)
    assert writer.finish(names.COMPLETE, scores={"val/accuracy": 20.0}, tags={names.TAG_PROTOCOL: "paper/1"})
    (record,) = ledger.trials()
    assert record.state == names.COMPLETE and record.tags[names.TAG_PROTOCOL] == "paper/1"
    assert history_of(ledger, record.run_id, "val/accuracy") == [(1, 10.0), (2, 20.0)]
    assert math.isnan(history_of(ledger, record.run_id, "loss")[0][1])
    run = run_of(ledger, record.run_id)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == ("shapes", "d" * 32, "training")
    assert journals(trial_folder) == []


def test_reports_are_gathered_into_few_requests(
    ledger: Ledger, trial_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def counted(client, run_id, attempt, numbers):
        sent.append(len(numbers))
        return write_numbers(client, run_id, attempt, numbers)

    monkeypatch.setattr(run_module, "write_numbers", counted)
    writer = new_writer(ledger, trial_folder)
    writer.report([report(e, **{f"m{i}": float(i) for i in range(28)}) for e in range(1, 51)])
    assert writer.finish(names.COMPLETE)
    assert sum(sent) == 50 * 30
    sent = [n for n in sent if n]
    assert len(sent) <= 3 and max(sent) <= 1000 and all(n % 30 == 0 for n in sent)


def test_training_goes_on_while_the_ledger_is_away(
    ledger: Ledger, trial_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_GATHER", 0.02)
    monkeypatch.setattr(writer_module, "_CAPACITY", 4)
    with monkeypatch.context() as patch:
        break_ledger(patch)
        writer = new_writer(ledger, trial_folder)
        start = time.monotonic()
        writer.report([report(e) for e in range(1, 21)])
        assert not writer.finish(names.COMPLETE, patience=0.2)
        assert time.monotonic() - start < 5
        (file,) = journals(trial_folder)
        assert file.read_text().count("\n") == 22  # the opening, 20 reports, the end
    deadline = time.monotonic() + 20
    while journals(trial_folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert journals(trial_folder) == []
    (record,) = ledger.trials()
    assert record.state == names.COMPLETE
    assert [step for step, _ in history_of(ledger, record.run_id, "val/accuracy")] == list(range(1, 21))


def _work_and_die(tracking_uri: str, folder: Path, finish: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_ledger(patch)
        writer = new_writer(Ledger(tracking_uri, "demo"), folder)
        writer.report([report(1), report(2)])
        if finish:
            writer.finish(names.COMPLETE, scores={"score": 1.0}, patience=0)
        os.kill(os.getpid(), signal.SIGKILL)


def work_and_die(ledger: Ledger, folder: Path, *, finish: bool) -> None:
    """A worker that trains two epochs while the ledger is away and is killed."""
    arguments = (ledger.tracking_uri, folder, finish)
    process = multiprocessing.get_context("fork").Process(target=_work_and_die, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(journals(folder)) == 1 and ledger.trials() == []


def test_the_next_command_tells_what_a_killed_one_could_not(ledger: Ledger, trial_folder: Path) -> None:
    work_and_die(ledger, trial_folder, finish=True)
    assert replay(ledger, trial_folder.parent) == 0
    assert replay(ledger, trial_folder.parent) == 0
    (record,) = ledger.trials()
    assert (record.state, record.metrics["score"]) == (names.COMPLETE, 1.0)
    assert [step for step, _ in history_of(ledger, record.run_id, "val/accuracy")] == [1, 2]
    assert journals(trial_folder) == []


def test_replay_leaves_what_still_cannot_be_told(
    ledger: Ledger, trial_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_and_die(ledger, trial_folder, finish=True)
    with monkeypatch.context() as patch:
        break_ledger(patch)
        assert close_session(Ledger(ledger.tracking_uri, "demo"), trial_folder.parent, complete=True, patience=0) == 1
    assert len(journals(trial_folder)) == 1
    assert close_session(ledger, trial_folder.parent, complete=True, patience=0) == 0
    assert run_of(ledger, ledger.record().run_id).info.status == "FINISHED"


def test_a_later_attempt_takes_the_run_over(ledger: Ledger, tmp_path: Path) -> None:
    """Two machines that share no folder: the first was cut off, and comes back after its replacement has begun."""
    cut_off = new_writer(ledger, tmp_path / "a")
    cut_off.report([report(1)])
    while not ledger.trials():
        time.sleep(0.05)
    while cut_off.waiting:
        time.sleep(0.05)
    replacement = new_writer(ledger, tmp_path / "b")
    replacement.report([report(1), report(2)])
    assert replacement.finish(names.COMPLETE)
    cut_off.report([report(1), report(2, late=1.0)])
    assert not cut_off.finish(names.FAILED, reason="late", patience=10) or cut_off.superseded
    assert cut_off.superseded
    (record,) = ledger.trials()
    assert record.state == names.COMPLETE and names.TAG_REASON not in record.tags
    assert history_of(ledger, record.run_id, "late") == []
    assert history_of(ledger, record.run_id, "val/accuracy") == [(1, 10.0), (2, 20.0)]
    assert journals(tmp_path / "a") == journals(tmp_path / "b") == []


def test_an_earlier_attempt_cannot_open_the_run_again(ledger: Ledger) -> None:
    early = new_attempt()
    late = new_attempt(early)
    assert late > early and new_attempt("004102444800000-ffffffff") > "004102444800000-ffffffff"
    run = ledger.open_trial(0, 0, PARAMS, {}, attempt=late)
    with pytest.raises(SupersededError, match="later than"):
        ledger.open_trial(0, 0, PARAMS, {}, attempt=early)
    run.sync([report(1)])
    other = ledger.open_trial(0, 0, PARAMS, {})
    for write in (lambda: run.sync([report(2)]), lambda: run.finish(names.FAILED)):
        with pytest.raises(SupersededError):
            write()
    other.sync([report(2)])
    assert [step for step, _ in history_of(ledger, run.run_id, "val/accuracy")] == [1, 2]


@pytest.mark.parametrize("shared", [True, False], ids=["one folder", "an object store"])
def test_a_replacement_whose_clock_is_behind_holds_the_run(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """The dead worker's machine was an hour ahead, and its journal is gone: all was told."""
    store = f"file://{tmp_path}/store"
    machines = [Storage(tmp_path / name, None if shared else store) for name in ("a", "a" if shared else "b")]
    first, second = (storage.local / "demo" / "trials" / "0000" for storage in machines)
    with monkeypatch.context() as ahead:
        now = time.time
        ahead.setattr(attempts.time, "time", lambda: now() + 3600)
        dead = new_writer(ledger, first, storage=machines[0])
        dead.report([report(1)])
        assert dead.finish(names.COMPLETE) and journals(first) == []
    replacement = new_writer(ledger, second, storage=machines[1])
    replacement.report([report(1), report(2)])
    assert replacement.finish(names.COMPLETE) and not replacement.superseded
    (record,) = ledger.trials()
    assert [step for step, _ in history_of(ledger, record.run_id, "val/accuracy")] == [1, 2]


def test_a_run_made_twice_at_once_is_one_whatever_the_clocks_say(
    ledger: Ledger, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looked before the first had made the run, and its clock is an hour behind."""
    second = Ledger(tracking_uri, ledger.study)
    looked: list[str] = []
    search, create = Experiment.search, MlflowClient.create_run

    def first_made_by_another(self: Experiment, matching: str, limit: int | None = None) -> list[object]:
        if names.TAG_KEY in matching:
            monkeypatch.setattr(Experiment, "search", search)
            looked.append(ledger.open_trial(0, 0, PARAMS, {}).run_id)
            monkeypatch.setattr(MlflowClient, "create_run", an_hour_behind)
            return []
        return search(self, matching, limit)

    def an_hour_behind(*arguments: object, **more: object) -> object:
        return create(*arguments, start_time=int(time.time() * 1000) - 3_600_000, **more)

    monkeypatch.setattr(Experiment, "search", first_made_by_another)
    run = second.open_trial(0, 0, PARAMS, {})
    assert [record.run_id for record in ledger.trials()] == looked == [run.run_id]


def test_a_new_attempt_tells_what_the_one_before_it_could_not(ledger: Ledger, trial_folder: Path) -> None:
    """The driver ends a trial whose worker died while the ledger was away: the worker's reports are not lost."""
    work_and_die(ledger, trial_folder, finish=False)
    driver = new_writer(ledger, trial_folder)
    assert driver.finish(names.FAILED, reason="its worker died")
    (record,) = ledger.trials()
    assert record.state == names.FAILED
    assert [step for step, _ in history_of(ledger, record.run_id, "val/accuracy")] == [1, 2]


def test_a_writer_that_lags_behind_a_slow_ledger_waits(
    ledger: Ledger, trial_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_CAPACITY", 3)
    monkeypatch.setattr(writer_module, "_GATHER", 0.01)
    slow = threading.Event()
    real = writer_module.deliver

    def deliver(*args):
        slow.wait(20)
        return real(*args)

    monkeypatch.setattr(writer_module, "deliver", deliver)
    writer = new_writer(ledger, trial_folder)
    caller = threading.Thread(target=writer.report, args=([report(e) for e in range(1, 6)],))
    caller.start()
    caller.join(0.5)
    assert caller.is_alive()
    slow.set()
    caller.join(20)
    assert not caller.is_alive()


def test_a_torn_line_is_no_entry(tmp_path: Path) -> None:
    file = tmp_path / "ledger-1.jsonl"
    journal = Journal(file)
    journal.append({"n": 1})
    with pytest.raises(BlockingIOError):
        Journal(file)
    journal.close()
    with file.open("a") as handle:
        handle.write('{"n": 2')
    journal = Journal(file)
    assert journal.entries() == [{"n": 1}]
    journal.append({"n": math.nan})
    first, second = journal.entries()
    assert first == {"n": 1} and math.isnan(second["n"])
    journal.clear()
    assert journal.entries() == []
