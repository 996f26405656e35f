"""Ray's own ``MLflowLoggerCallback`` beside this project's ledger: the same reports into the same kinds of store.

``python -m benchmarks.ledger`` prints, for a SQLite store and for ``mlflow server``, what a report of 30 metrics costs
the process that makes it (CPU, all its threads), what is left waiting where 50 reports come a second, how fast
reports drain when they come without a pause, and how fast runs are opened. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.server import served
from study.ledger import Ledger, TrialWriter, create_store

METRICS = 30  # in a report, its number included
PARAMS = {f"group{i // 5}": {f"name{j}": 0.1 * j for j in range(i, i + 5)} for i in range(0, 25, 5)}
TRACKERS = ("ours", "stock")
STORES = ("sqlite", "server")
Result = dict[str, float]


class _Ours:
    """A writer per trial, as the workers of a study have them, all in this process."""

    step = "epoch"

    def __init__(self, uri: str, folder: Path) -> None:
        self._uri, self._folder, self._writers = uri, folder, dict[int, TrialWriter]()
        Ledger(uri, "bench").open_study(fingerprint="f" * 64, spec={}, tags={}, artifact_location=None)

    def open(self, trial: int) -> None:
        Ledger(self._uri, "bench").open_trial(trial, 0, PARAMS, {})

    def start(self, trials: int) -> None:
        for trial in range(trials):
            self._writers[trial] = TrialWriter(
                Ledger(self._uri, "bench"), self._folder / f"{trial:04d}", trial=trial, seed=0, params=PARAMS, tags={}
            )
            self._writers[trial].start()
        self.drain()

    def report(self, trial: int, values: dict[str, float]) -> None:
        self._writers[trial].report([values])

    def waiting(self) -> int:
        """Reports that the store has not got."""
        return sum(writer.waiting for writer in self._writers.values())

    def drain(self) -> None:
        while self.waiting():
            time.sleep(0.01)


class _Trial:
    """What the callback reads of Ray's trial."""

    def __init__(self, number: int) -> None:
        self.config, self._name = PARAMS, f"trial_{number:05d}"

    def __str__(self) -> str:
        return self._name


class _Stock:
    """Ray's callback, called as Tune's loop calls it: it returns when all is stored."""

    step = "training_iteration"

    def __init__(self, uri: str, folder: Path) -> None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        self._callback = MLflowLoggerCallback(tracking_uri=uri, experiment_name="bench")
        self._callback.setup()
        self._trials: list[_Trial] = []

    def open(self, trial: int) -> None:
        self._callback.log_trial_start(_Trial(trial))  # type: ignore[arg-type]

    def start(self, trials: int) -> None:
        self._trials = [_Trial(number) for number in range(trials)]
        for trial in self._trials:
            self._callback.log_trial_start(trial)  # type: ignore[arg-type]

    def report(self, trial: int, values: dict[str, float]) -> None:
        self._callback.log_trial_result(0, self._trials[trial], dict(values))  # type: ignore[arg-type]

    def waiting(self) -> int:
        return 0

    def drain(self) -> None:
        return


def reports(step: str, trials: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Endless, the same for everybody: each trial's next report in turn."""
    rng, number = random.Random(0), 0
    while True:
        number += 1
        for trial in range(trials):
            yield trial, {step: number, **{f"saliency/method/part_{i:02d}": rng.random() for i in range(METRICS - 1)}}


def offer(tracker: Any, source: Iterator[Any], seconds: float, rate: float | None) -> Result:
    """Reports for ``seconds``, ``rate`` a second or without a pause; CPU and time run until the store has them all.

    The backlog is what was due and is not stored, at its highest in either half of the time.
    """
    cpu, start, done = time.process_time(), time.perf_counter(), 0
    backlog = [0.0, 0.0]
    while (now := time.perf_counter() - start) < seconds:
        due = now * rate if rate else done + 1
        if done < due:
            tracker.report(*next(source))
            done += 1
        else:
            time.sleep(0.002)
        if rate:
            half = int(2 * now / seconds)
            backlog[half] = max(backlog[half], due - done + tracker.waiting())
    tracker.drain()
    return {
        "reports": done,
        "cpu_ms": 1000 * (time.process_time() - cpu) / done,
        "per_second": done / (time.perf_counter() - start),
        "backlog_first": backlog[0],
        "backlog_second": backlog[1],
    }


def _measure(name: str, uri: str, folder: str, trials: int, seconds: float, answer: Any) -> None:
    """In a process of its own: open runs, then steady reports, then a flood."""
    tracker: Any = {"ours": _Ours, "stock": _Stock}[name](uri, Path(folder))
    tracker.open(10_000)  # imports, connections
    start = time.perf_counter()
    for trial in range(trials):
        tracker.open(20_000 + trial)
    runs = trials / (time.perf_counter() - start)
    tracker.start(trials)
    source = reports(tracker.step, trials)
    steady = offer(tracker, source, seconds, 50.0)
    flood = offer(tracker, source, seconds / 2, None)
    answer.put({"steady": steady, "flood": flood, "runs_per_second": runs})


def measure(name: str, store: str, trials: int, seconds: float) -> dict[str, Any]:
    """One round on a fresh store. Raises RuntimeError where the store does not hold every report whole."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "mlflow.db"
        create_store(f"sqlite:///{database}")
        with contextlib.ExitStack() as stack:
            uri = stack.enter_context(served(database)) if store == "server" else f"sqlite:///{database}"
            context = multiprocessing.get_context("spawn")
            answer = context.Queue()
            process = context.Process(target=_measure, args=(name, uri, folder, trials, seconds, answer))
            process.start()
            result: dict[str, Any] = answer.get(timeout=60 + 20 * seconds)
            process.join()
        with contextlib.closing(sqlite3.connect(database)) as db:
            (stored,) = db.execute("select count(*) from metrics").fetchone()
        told = int(result["steady"]["reports"] + result["flood"]["reports"])
        if stored != METRICS * told:
            raise RuntimeError(f"{name}, {store}: {stored} metrics are stored of {METRICS * told}")
        return result


def _spread(rounds: list[dict[str, Any]], pick: Callable[[dict[str, Any]], float]) -> str:
    values = sorted(pick(r) for r in rounds)
    return f"{statistics.median(values):.3g} ({values[0]:.3g}-{values[-1]:.3g})"


ROWS: dict[str, Callable[[dict[str, Any]], float]] = {
    "CPU ms per report, 50 a second offered": lambda r: r["steady"]["cpu_ms"],
    "CPU ms per report, flood": lambda r: r["flood"]["cpu_ms"],
    "reports stored per second, drain included": lambda r: r["steady"]["per_second"],
    "highest backlog, first half": lambda r: r["steady"]["backlog_first"],
    "highest backlog, second half": lambda r: r["steady"]["backlog_second"],
    "reports drained per second, flood": lambda r: r["flood"]["per_second"],
    "metrics per second, flood": lambda r: METRICS * r["flood"]["per_second"],
    "runs opened per second": lambda r: r["runs_per_second"],
}


def main(argv: list[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--trials", type=int, default=16, help="that report in turn")
    parse.add_argument("--seconds", type=float, default=10.0, help="of steady reports; the flood takes half of it")
    parse.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    args = parse.parse_args(argv)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs; {args.trials} trials, {METRICS} metrics a report; median (range)"
    )
    summary: dict[str, Any] = {}
    for store in args.stores:
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in TRACKERS}
        for _ in range(args.rounds):
            for name in TRACKERS:  # in turn, so that a busy minute meets both
                rounds[name].append(measure(name, store, args.trials, args.seconds))
        print(f"\n{store:<40}{'ours':>24}{'stock':>24}{'stock/ours':>12}")
        for label, pick in ROWS.items():
            median = {name: statistics.median(pick(r) for r in rounds[name]) for name in TRACKERS}
            ratio = f"{median['stock'] / median['ours']:.3g}" if median["ours"] else "-"
            cells = "".join(f"{_spread(rounds[name], pick):>24}" for name in TRACKERS)
            print(f"{label:<40}{cells}{ratio:>12}", flush=True)
            summary.setdefault(store, {})[label] = {name: round(value, 4) for name, value in median.items()}
    steady = [summary[store]["CPU ms per report, 50 a second offered"] for store in args.stores]
    worst = {name: max(s[name] for s in steady) for name in TRACKERS}
    print(json.dumps({"driver_ms_per_report": worst, **summary}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
