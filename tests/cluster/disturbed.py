"""A study typed on a lab's laptop, and what befalls it: each method of :class:`Disturbed` is one kind of fault."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from study import names
from study.training.checkpoint import load_checkpoint
from tests.cluster.lab import SHARED, Lab, wait_until
from tests.e2e.books import check_books, check_undisturbed

WORKERS = ("worker1", "worker2")
_REPORT = re.compile(r"^trial (\d+) .*  epoch (\d+)/.*  (?:running|complete) ·", re.MULTILINE)
# Words of the command lines of a trial's process, the tracking server, what starts it again, and the driver.
_TRIAL, _SERVER, _SERVER_LOOP = "Trainable", "-m mlflow server", "tracking-server"
_DRIVER = ".venv/bin/python -m study.run"


def specification(*, epochs: int, trials: int, retries: int) -> str:
    """Of a study that two small machines train in minutes."""
    return f"""
objectives: {{accuracy: maximize, faithfulness: maximize}}
space:
  lr: {{float: [0.02, 0.3], log: true}}
  reg_weight: {{float: [1.0e-3, 10], log: true, zero: true}}
fixed: {{network: tiny, batch_size: 64, warmup_epochs: 0.5}}
fidelity: {{max_epochs: {epochs}}}
data: {{source: shapes, train_images: 600, validation_images: 100}}
evaluation: {{images: 50}}
budget: {{trials: {trials}, retries: {retries}}}
"""


class Disturbed:
    """``name``.yaml is in the laptop's checkout already; the command is typed on construction."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.folder = lab.shared / name
        self._typed = 0
        self.type()

    def type(self, *options: str) -> None:
        """The same command, in a new terminal."""
        self._typed += 1
        self.log = self.lab.folder / f"{self.name}-{self._typed}.log"
        line = " ".join(["python -m study.run", f"{self.name}.yaml", *options])
        self.command = self.lab["laptop"].start(f"cd ~/study && {line}", self.log)

    def close_lid(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.command.pid, signal.SIGKILL)
        self.command.wait()

    def shown(self) -> str:
        """What the command that was typed last has printed so far."""
        return self.log.read_text(errors="replace")

    def reports(self, since: int = 0) -> dict[int, list[int]]:
        """Trial: the epochs that it has shown of it, from that place of its output on."""
        found: dict[int, list[int]] = {}
        for trial, epoch in _REPORT.findall(self.shown()[since:]):
            found.setdefault(int(trial), []).append(int(epoch))
        return found

    def epochs(self) -> dict[int, int]:
        """Trial: the last epoch that it has shown."""
        return {trial: epochs[-1] for trial, epochs in self.reports().items()}

    def saved(self, trial: int) -> int:
        """Epochs in the trial's checkpoint."""
        file = self.folder / "trials" / f"{trial:04d}" / names.CHECKPOINT_FILE
        return len(load_checkpoint(file).header["history"]) if file.exists() else 0

    def running(self, machine: str | None = None) -> list[int]:
        """Trials that the ledger has as running (there)."""
        query = "select n.value, h.value from tags n join tags h using (run_uuid) join tags s using (run_uuid) "
        query += f"where n.key = '{names.TAG_TRIAL}' and h.key = '{names.TAG_HOST}' and s.key = "
        query += f"'{names.TAG_STATE}' and s.value = '{names.RUNNING}'"
        try:
            with contextlib.closing(sqlite3.connect(f"file:{self.lab.shared}/mlflow.db?mode=ro", uri=True)) as db:
                rows = db.execute(query).fetchall()
        except sqlite3.Error:  # it is being made
            return []
        return sorted(int(trial) for trial, host in rows if machine is None or host == self.lab[machine].address)

    def lost(self) -> list[int]:
        """Trials whose machine was lost, as the study's own notes have it."""
        try:
            lines = (self.folder / names.EVENTS_FILE).read_text().splitlines()
        except OSError:
            return []
        return sorted(event["trial"] for event in map(json.loads, lines) if event["event"] == "machine lost")

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait while the command runs; an end of it before is a failure."""
        try:
            wait_until(lambda: condition() or self.command.poll() is not None, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.shown()}") from None
        assert condition(), f"the command ended before: {what}\n{self.shown()}"

    def status(self) -> str:
        """What `study.status` says of it, from outside."""
        return self.lab["laptop"].run(f"cd ~/study && python -m study.status {self.name}").stdout

    # Faults

    def kill_trial(self, machine: str) -> bool:
        """The process of one trial there; False where there is none."""
        for pid in self.lab[machine].processes(_TRIAL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def kill_raylet(self, machine: str) -> bool:
        return bool(self.lab[machine].signal("raylet/raylet --", signal.SIGKILL))

    def switch_off(self, machine: str, after: float) -> None:
        """Cut off, and without current some seconds later."""
        self.lab[machine].cut()
        time.sleep(after)
        self.lab[machine].kill()

    def flicker(self, machine: str, seconds: float) -> None:
        self.lab[machine].cut()
        time.sleep(seconds)
        self.lab[machine].mend()

    def slow_down(self, machine: str, seconds: float) -> bool:
        """All trials there stand still for a while."""
        stopped = self.lab[machine].signal(_TRIAL, signal.SIGSTOP)
        time.sleep(seconds)
        self.lab[machine].signal(_TRIAL, signal.SIGCONT)
        return bool(stopped)

    def unmount(self, machine: str, seconds: float) -> None:
        """The machine sees an empty folder where the storage was, and cannot write there."""
        self.lab[machine].run(f"mount -t tmpfs -o ro none {SHARED}")
        time.sleep(seconds)
        self.lab[machine].run(f"umount -l {SHARED}")

    def server_is_up(self) -> bool:
        return bool(self.lab["head"].processes(_SERVER_LOOP))

    @contextlib.contextmanager
    def server_away(self) -> Iterator[None]:
        """Nothing listens on the tracking server's port meanwhile."""
        head = self.lab["head"]
        assert head.signal(_SERVER_LOOP, signal.SIGSTOP)
        for pid, line in (head.processes(_SERVER) | head.processes("uvicorn")).items():
            if _SERVER_LOOP not in line:  # the loop's own line names what it starts
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        try:
            yield
        finally:
            head.signal(_SERVER_LOOP, signal.SIGCONT)

    def kill_driver(self) -> bool:
        for pid, line in self.lab["head"].processes(_DRIVER).items():
            if line.startswith(_DRIVER):  # not those that look on
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def restart_head(self) -> None:
        self.lab["head"].kill()
        time.sleep(1)
        self.lab.power_on("head")

    # The end

    def finish(self, *options: str, seconds: float) -> None:
        """Type the command, as it asks to, until all trials are over and told; each time may take so long."""
        for _ in range(6):
            wait_until(lambda: self.command.poll() is not None, seconds, "the command ends")
            said = self.shown()
            if self.command.returncode == 0 and "type the same command" not in said:
                return
            print(f"        ended with {self.command.returncode}: {self.last_line()}", flush=True)
            self.type(*options)
        raise AssertionError(said)

    def last_line(self) -> str:
        return next((line[:200] for line in reversed(self.shown().splitlines()) if line.strip()), "")

    def check(self, work: Path, *, trials: int, epochs: int) -> None:
        """All books, read past the server; every trial against one in peace."""
        client = MlflowClient(f"sqlite:///{self.lab.shared / 'mlflow.db'}")

        def files_of(run: Any) -> set[str]:
            place = Path(run.info.artifact_uri.removeprefix("file:")).relative_to(SHARED)
            return {file.name for file in (self.lab.shared / place / names.CHECKPOINT_ARTIFACTS).iterdir()}

        check_books(client, self.folder, trials=trials, epochs=epochs, files_of=files_of)
        check_undisturbed(client, self.folder, work, trials=trials)
