"""Thirty random faults in one study on real hosts, for `make soak`; test_lab_faults.py has three of them one by one."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.disturbed import WORKERS, Disturbed, specification
from tests.cluster.lab import cluster, missing, wait_until

pytestmark = [
    pytest.mark.soak,
    pytest.mark.system,
    pytest.mark.timeout(3 * 3600),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
EPOCHS, TRIALS = 24, 12
SPEC = specification(epochs=EPOCHS, trials=TRIALS, retries=30)
MINUTE = 60.0
FAULTS = {
    "trial killed": 7,
    "raylet killed": 4,
    "machine switched off": 4,
    "head switched off": 2,
    "server away": 3,
    "server away for a minute": 1,
    "driver killed": 3,
    "link down for seconds": 3,
    "machine slow": 2,
    "storage away": 1,
}
_STUCK = 900.0  # seconds without an end of the command: nothing here takes that long


def test_thirty_random_faults_lose_and_double_nothing(tmp_path: Path) -> None:
    rng = random.Random(sum(FAULTS.values()))
    plan = rng.sample(list(FAULTS), sum(FAULTS.values()), counts=list(FAULTS.values()))
    with cluster(tmp_path / "lab", {"soak.yaml": SPEC}) as lab:
        start = time.monotonic()
        soak = Soak(Disturbed(lab, "soak"))
        for fault in plan:
            soak.wait(lambda: bool(soak.study.reports()), "the study is on its way")
            soak.rest(rng.uniform(3, 12))
            place = rng.choice(WORKERS)
            print(f"{time.monotonic() - start:6.0f} s  {fault}  {place}  at {soak.study.epochs()}", flush=True)
            soak.strike(fault, place, rng)
        soak.study.finish("--trials", str(soak.trials), seconds=_STUCK)
        minutes = (time.monotonic() - start) / 60
        soak.study.check(tmp_path / "peace", trials=soak.trials, epochs=EPOCHS)
    counts = ", ".join(f"{n} × {fault}" for fault, n in Counter(plan).items())
    print(
        f"{len(plan)} faults ({counts}) in a study of {soak.trials} trials of {EPOCHS} epochs on a head and "
        f"{len(WORKERS)} workers, {minutes:.1f} min: 0 lost, 0 doubled, every trial equal to one in peace, "
        "all series complete and in order, no journal left"
    )


class Soak:
    """A study that always has more to do."""

    def __init__(self, study: Disturbed) -> None:
        self.study = study
        self.trials = TRIALS

    def go_on(self) -> None:
        """Where the command has ended, type it again: with more trials where it had ended all."""
        code = self.study.command.poll()
        if code is None:
            return
        print(f"        ended with {code}: {self.study.last_line()}", flush=True)
        if code == 0:
            self.trials += len(WORKERS) * 2
        self.study.type("--trials", str(self.trials))

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Go on until ``condition`` holds."""

        def holds() -> bool:
            self.go_on()
            return condition()

        wait_until(holds, _STUCK, what)

    def rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end, "the time passes")

    def strike(self, fault: str, place: str, rng: random.Random) -> None:
        study = self.study
        if fault == "trial killed":
            self.wait(lambda: any(study.kill_trial(machine) for machine in WORKERS), "a trial to kill")
        elif fault == "raylet killed":
            self.wait(lambda: any(study.kill_raylet(machine) for machine in WORKERS), "a raylet to kill")
        elif fault == "machine switched off":
            study.switch_off(place, after=rng.uniform(0, 5))
            time.sleep(rng.uniform(0, 20))
            study.lab.power_on(place)
        elif fault == "head switched off":
            study.restart_head()
            study.close_lid()
            study.lab.bring_up()
        elif fault.startswith("server away"):
            self.wait(study.server_is_up, "a server to kill")
            with study.server_away():
                self.rest(MINUTE if "minute" in fault else rng.uniform(2, 15))
        elif fault == "driver killed":
            self.wait(study.kill_driver, "a driver to kill")
            study.command.wait(120)
        elif fault == "link down for seconds":
            study.flicker(place, rng.uniform(2, 8))
        elif fault == "machine slow":
            study.slow_down(place, rng.uniform(10, 30))
        else:
            study.unmount(place, rng.uniform(5, 20))
