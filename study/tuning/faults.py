"""What goes wrong around trials: lost machines are forgiven, a storage is waited for, a full one ends the session."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayActorError, RayTaskError

from study import names
from study.storage.storage import NEEDED_BYTES, Storage
from study.tuning.job import Job
from study.tuning.ray_internals import error_of, forgive, node_of_actor

LOST, WORKER, ERROR, FULL, AWAY = "machine lost", "worker died", "error", "storage full", "storage away"
STORAGE_FULL = "storage_full"  # in a result: the trial could not save its epoch
STORAGE_AWAY = "storage_away"  # in a result: the storage did not answer the trial's machine; why
# What a mounted folder answers while its server, or the way there, is gone.
_AWAY_ERRORS = {
    errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ECONNREFUSED,
    errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.EREMOTEIO,
}  # fmt: skip
_CHECK_SECONDS = 5.0
_PROBE_SECONDS = 2.0


def is_full(error: OSError) -> bool:
    """No space, or the user's quota of it is spent."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def cause_in_system(error: BaseException) -> OSError | None:
    """The operating system's error behind ``error``, which may be one line for a person by now."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__
    return found


def is_mounted(storage: Storage, study: str) -> bool:
    """Whether this machine sees the study's folder: one that has not mounted the storage sees an empty place.

    An object store's working copy may begin empty.
    """
    return storage.uri is not None or (storage.local / study / names.STUDY_FILE).exists()


def is_away(error: OSError, storage: Storage, study: str) -> bool:
    """Whether the storage does not answer, which is no fault of the trial and passes.

    An object store's client names no number.
    """
    if storage.uri is not None and error.errno is None:
        return True
    return error.errno in _AWAY_ERRORS or (error.errno == errno.ENOENT and not is_mounted(storage, study))


def machine_is_gone(error: BaseException | None) -> bool:
    """Whether a worker ended because its whole machine did: taken back, switched off, cut off.

    Ray itself knows that a minute later at worst; until then the machine's raylet is asked, which a dead machine does
    not answer. A worker that died on a machine that lives (out of memory, a crash) is the trial's own failure.
    """
    if isinstance(error, RayTaskError):
        error = error.as_instanceof_cause()
    if not isinstance(error, RayActorError):
        return False
    if error.preempted or "node has died" in str(error) or "node died" in str(error):
        return True
    node = node_of_actor(getattr(error, "actor_id", None))
    if node is None:
        return False
    if not node["Alive"]:
        return True
    try:
        address = node["NodeManagerAddress"], node["NodeManagerPort"]
        socket.create_connection(address, timeout=_PROBE_SECONDS).close()
    except OSError:
        return True
    return False


class Faults(tune.Callback):
    """Decides which failures count against a trial's retries, and notes all of them in the study's folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / names.EVENTS_FILE
        self._trials: dict[str, Any] = {}
        self._judged: dict[tuple[str, int], bool] = {}
        self._waiting: set[str] = set()  # trials whose storage is away

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks with its snapshot, which a study does not continue from."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if len(self._trials) != len(trials):
            self._trials = {trial.trial_id: trial for trial in trials}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result.get(STORAGE_AWAY):
            self._waiting.discard(trial.trial_id)
        elif trial.trial_id not in self._waiting:
            self._waiting.add(trial.trial_id)
            self.note(AWAY, Job.of(trial.config).number, OSError(result[STORAGE_AWAY]))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A lost machine is no failure of the trial: it gets the retry back."""
        if self.lost(trial.trial_id):
            forgive(trial)

    def lost(self, trial_id: str) -> bool:
        """Whether the trial's latest failure was its machine's; judged and noted once per failure."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return False
        key = trial_id, trial.num_failures
        if key not in self._judged:
            error = error_of(trial)
            self._judged[key] = machine_is_gone(error)
            kind = LOST if self._judged[key] else WORKER if isinstance(error, RayActorError) else ERROR
            self.note(kind, Job.of(trial.config).number, error)
        return self._judged[key]

    def note(self, kind: str, trial: int | None = None, error: BaseException | None = None) -> None:
        text = str(error).strip().splitlines()[-1][:200] if error else ""
        line = {"time": time.time(), "event": kind, "trial": trial, "text": text}
        with contextlib.suppress(OSError), self._file.open("a") as out:  # a full storage is what it may be about
            out.write(json.dumps(line) + "\n")


class StorageGuard(tune.Stopper):
    """Ends the session while there still is room for its books, instead of failing trial after trial.

    ``full`` says afterwards what was found, or is empty.
    """

    def __init__(self, folder: Path, faults: Faults) -> None:
        self.full = ""
        self._folder = folder
        self._faults = faults
        self._checked = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {"full": "", "_folder": self._folder, "_faults": None, "_checked": 0.0}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if result.get(STORAGE_FULL):
            self._found("a trial could not save its checkpoint")
        return False

    def stop_all(self) -> bool:
        if not self.full and time.monotonic() - self._checked >= _CHECK_SECONDS:
            self._checked = time.monotonic()
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(self._folder).free
                if free < NEEDED_BYTES:
                    self._found(f"{free / 2**20:.0f} MiB are free and {NEEDED_BYTES / 2**20:.0f} are needed")
        return bool(self.full)

    def _found(self, what: str) -> None:
        if not self.full:
            self.full = what
            self._faults.note(FULL)
