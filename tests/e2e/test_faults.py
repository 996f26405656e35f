"""A study whose driver, worker or tracking server is killed at random moments: nothing lost, nothing doubled.

Two kills in every test run; ``make soak`` does twenty.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from study import names
from tests.e2e.books import check_books
from tests.e2e.test_study import SPEC, environment, workers

pytestmark = [pytest.mark.slow]


class Processes:
    """The tracking server and the driver of one study, each started again after it was killed."""

    def __init__(self, folder: Path, trials: int) -> None:
        self.folder = folder
        self.trials = trials
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.server = self.start_server()
        self.driver = self.start_driver()

    def start_server(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        variables = {**environment(self.folder), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, cwd=self.folder, env=variables, start_new_session=True, **quiet)
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return server
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the tracking server does not start"
                time.sleep(0.3)

    def start_driver(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "study.run", "k.yaml", "--tracking-uri", self.uri, "--trials"]
        with (self.folder / "driver.log").open("ab") as log:
            return subprocess.Popen(
                [*command, str(self.trials)], cwd=self.folder, env=environment(self.folder), stdout=log, stderr=log
            )

    def kill_server(self, seconds: float) -> None:
        """The whole session of the server: its worker holds the socket."""
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()
        time.sleep(seconds)
        self.server = self.start_server()

    def kill_driver(self) -> None:
        self.driver.kill()
        self.driver.wait()
        self.driver = self.start_driver()

    def go_on(self) -> None:
        """Where the command ended, type it again: with more trials, or the same where no server answered it."""
        if self.driver.poll() is None:
            return
        self.trials += 5 if self.driver.returncode == 0 else 0
        refused = self.driver.returncode == 2 and self.uri in self.log().splitlines()[-1]
        assert self.driver.returncode == 0 or refused, self.log()
        self.driver = self.start_driver()

    def log(self) -> str:
        return (self.folder / "driver.log").read_text()[-2000:]

    def kill_worker(self) -> bool:
        for pid in workers(self.driver.pid):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def stop(self) -> None:
        self.driver.kill()
        self.driver.wait()
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()


def disturb(processes: Processes, kinds: list[str], rng: random.Random) -> None:
    """Kill at random moments; a study that ends before the last kill is extended, so that all of them hit one."""
    for kind in kinds:
        time.sleep(rng.uniform(3, 12))
        processes.go_on()
        print(f"kill {kind}", flush=True)
        if kind == "server":
            processes.kill_server(rng.uniform(2, 10))
        elif kind == "driver":
            processes.kill_driver()
        else:
            while not processes.kill_worker():
                processes.go_on()
                time.sleep(0.2)


@pytest.mark.parametrize(
    ("kills", "trials"),
    [
        pytest.param(2, 5, marks=pytest.mark.timeout(600)),
        pytest.param(20, 25, marks=[pytest.mark.soak, pytest.mark.timeout(7200)]),
    ],
)
def test_nothing_is_lost_or_doubled(tmp_path: Path, kills: int, trials: int) -> None:
    rng = random.Random(kills)
    (tmp_path / "k.yaml").write_text(SPEC.replace("budget: {trials: 6}", f"budget: {{trials: {trials}, retries: 20}}"))
    kinds = ["server", "worker"] if kills == 2 else [rng.choice(["server", "worker", "driver"]) for _ in range(kills)]
    start = time.monotonic()
    processes = Processes(tmp_path, trials)
    try:
        folder = tmp_path / "results/k/trials/0000"
        deadline = time.monotonic() + 240
        while not (folder / names.CHECKPOINT_FILE).exists():
            assert processes.driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        disturb(processes, kinds, rng)
        while processes.driver.wait() != 0:
            processes.go_on()
        client, folder = MlflowClient(processes.uri), tmp_path / "results/k"
        check_books(client, folder, trials=processes.trials, epochs=4, files_of=lambda run: files_of(client, run))
    finally:
        processes.stop()
    counts = ", ".join(f"{kinds.count(kind)} of the {kind}" for kind in sorted(set(kinds)))
    print(
        f"{kills} kills ({counts}) in a study of {processes.trials} trials, {(time.monotonic() - start) / 60:.1f} min: "
        "0 duplicate runs, 0 lost trials, all series complete and in order, no journal left"
    )


def files_of(client: MlflowClient, run: Any) -> set[str]:
    there = client.list_artifacts(run.info.run_id, names.CHECKPOINT_ARTIFACTS)
    return {file.path.rpartition("/")[2] for file in there}
