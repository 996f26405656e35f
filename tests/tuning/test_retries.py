"""Which failures count: a configuration that kills its worker every time, and a storage that is away for a while."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
from pathlib import Path

import optuna
import pytest
import ray
from ray import cloudpickle
from rich.console import Console

from benchmarks.scale import STUDY, NapSettings, SleepingTrainable, specification
from study import names
from study.errors import StorageError
from study.ledger import Ledger, close_session, create_store, default_tracking_uri
from study.search.search import Search
from study.storage.storage import Storage, trial_folder
from study.tuning.faults import AWAY, WORKER, cause_in_system, is_away
from study.tuning.joining import connected
from study.tuning.tuner import run_trials

POISONOUS, WITHOUT_STORAGE, RETRIES = 1, 2, 2


class Unfortunate(SleepingTrainable):
    """One trial's process dies whenever it trains; another's storage answers at the second try."""

    def _open(self) -> None:
        number, folder = self.job.number, self.job.folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "tries").open("a") as tries:
            tries.write("x")
        if number == POISONOUS:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == WITHOUT_STORAGE and (folder / "tries").stat().st_size == 1:
            error = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error
        super()._open()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_poisonous_configuration_fails_after_its_retries_and_the_study_goes_on(tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["x"]))  # workers do not know this file
    spec = specification(5, "random").model_copy(deep=True)
    spec = spec.model_copy(update={"budget": spec.budget.model_copy(update={"retries": RETRIES})})
    storage, uri = Storage(tmp_path), default_tracking_uri(tmp_path)
    (tmp_path / STUDY).mkdir()
    (tmp_path / STUDY / names.STUDY_FILE).write_text("{}")
    create_store(uri)
    ledger = Ledger(uri, STUDY)
    ledger.open_study(fingerprint="f" * 64, spec={}, tags={}, artifact_location=None)
    settings = NapSettings(STUDY, storage, uri, seconds=0.1)
    file, shown = tmp_path / STUDY / names.OPTUNA_FILE, io.StringIO()
    with connected("local"):
        run_trials(Search(spec, STUDY, file), settings, Console(file=shown), trainable=Unfortunate)
        assert close_session(ledger, tmp_path / STUDY / "trials", complete=True) == 0
    assert not ray.is_initialized()
    trials = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{file}").trials
    assert [t.state.name for t in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    tries = {n: (trial_folder(storage, STUDY, n) / "tries").stat().st_size for n in range(5)}
    assert tries == {0: 1, POISONOUS: 1 + RETRIES, WITHOUT_STORAGE: 2, 3: 1, 4: 1}
    records = {record.trial: record for record in ledger.trials()}
    assert [records[n].state for n in range(5)] == [
        names.COMPLETE, names.FAILED, names.COMPLETE, names.COMPLETE, names.COMPLETE,
    ]  # fmt: skip
    assert records[POISONOUS].tags[names.TAG_REASON]
    lines = (tmp_path / STUDY / names.EVENTS_FILE).read_text().splitlines()
    events = [(event["event"], event["trial"]) for event in map(json.loads, lines)]
    assert sorted(events) == sorted([(AWAY, WITHOUT_STORAGE)] + [(WORKER, POISONOUS)] * (1 + RETRIES))
    assert "its storage does not answer (Stale file handle)" in shown.getvalue().replace("\n", " ")


def test_what_counts_as_a_storage_that_is_away(tmp_path: Path) -> None:
    folder, store = Storage(tmp_path), Storage(tmp_path, "s3://bucket/studies")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / names.STUDY_FILE).write_text("{}")
    assert is_away(OSError(errno.EIO, ""), folder, "s") and is_away(OSError(errno.EROFS, ""), store, "s")
    assert is_away(OSError("AWS Error NETWORK_CONNECTION"), store, "s")
    assert not is_away(OSError("no number"), folder, "s") and not is_away(OSError(errno.EACCES, ""), folder, "s")
    assert not is_away(FileNotFoundError(errno.ENOENT, "data"), folder, "s"), "something else is not there"
    assert is_away(FileNotFoundError(errno.ENOENT, "folder"), folder, "not mounted")
    said = StorageError("one line")
    assert cause_in_system(said) is None
    said.__cause__ = OSError(errno.ENOSPC, "full")
    assert cause_in_system(said) is said.__cause__
