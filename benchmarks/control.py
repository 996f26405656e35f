"""What the control loop costs at scale: ``python -m benchmarks.control [--trials 5000 --workers 1000]``.

A study with many trials behind it on Optuna's SQLite storage, as the product keeps it, and a simulated cluster of many
workers: each asks for a trial, reports after every rung, and is told off or ends. In one process; curves are a formula.
Prints the latency of an ask, of a tell, and of the scheduler per report, and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler

from benchmarks.record_curves import SPEC, points
from benchmarks.replay import ACCURACY, FAITHFULNESS
from study import metrics, names
from study.search.encoding import distributions, encode
from study.search.optuna_internals import insert
from study.search.search import Search
from study.search.stored import open_study
from study.spec.space import Point
from study.spec.study_spec import StudySpec, load_spec
from study.storage.storage import Storage
from study.tuning.job import Job, Settings
from study.tuning.scheduler import StudyScheduler
from study.tuning.searcher import StudySearcher

STUDY = "control"
_ERRORS = {f"report/{metrics.ACCURACY_ERROR}": 1.0, f"report/{metrics.FAITHFULNESS_ERROR}": 1.0}


def scores(point: Point, epoch: int, epochs: int) -> list[float]:
    """Accuracy (%) and faithfulness that disagree over lambda, with noise fixed by the point."""
    noise = np.random.default_rng(abs(hash((point["lr"], point["reg_weight"]))) % 2**32).normal(size=2)
    away = abs(np.log10(float(point["lr"]) / 0.1))
    weight = float(point["reg_weight"])
    part = (epoch / epochs) ** 0.3
    return [part * (80 - 20 * away - 5 * weight) + noise[0], part * (5 + np.log10(weight + 1e-3)) + noise[1]]


def fill(spec: StudySpec, file: Path, trials: int) -> None:
    """Trials that are over, in Optuna's storage: two in three stopped at the first rung, and so on at each."""
    study = open_study(file, STUDY, ["maximize"] * 2)
    kinds, levels = distributions(spec), [*spec.fidelity.rungs, spec.fidelity.max_epochs]
    for i, point in enumerate(points(spec, trials)):
        reached = next((n for n in range(1, len(levels)) if i % 3**n), len(levels))
        curve = {str(e): scores(point, e, levels[-1]) for e in levels[:reached] if e != levels[-1]}
        complete = reached == len(levels)
        params = encode(spec, point)
        trial = optuna.create_trial(
            state=TrialState.COMPLETE if complete else TrialState.PRUNED,
            values=scores(point, levels[-1], levels[-1]) if complete else None,
            params=params,
            distributions={name: kinds[name] for name in params},
            user_attrs={"rungs": curve},
        )
        insert(study, trial)


class Clock:
    """Milliseconds of every call, by name."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, list[float]] = {}

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = call()
        self.milliseconds.setdefault(name, []).append(1000 * (time.perf_counter() - start))
        return value

    def quantiles(self, name: str) -> tuple[float, float, float]:
        """Median, 95 % and largest."""
        values = self.milliseconds[name]
        return float(np.median(values)), float(np.quantile(values, 0.95)), max(values)


def drive(spec: StudySpec, file: Path, workers: int, clock: Clock) -> tuple[int, int]:
    """``workers`` trials at once, from asking to their end. How many ended complete, and stopped."""
    search = clock("open the study", lambda: Search(spec, STUDY, file))
    searcher = StudySearcher(search, Settings(STUDY, Storage(file.parent), ""))
    scheduler = clock("fill the rungs", lambda: StudyScheduler(search))
    live: list[tuple[Any, Point]] = []
    for i in range(workers):
        config = clock("ask", lambda i=i: searcher.suggest(f"{i:05d}"))  # type: ignore[misc]
        if not isinstance(config, dict):
            break
        values = Job.of(config).trial.config
        point = {name: getattr(values, name) for name in spec.space if getattr(values, name) is not None}
        live.append((SimpleNamespace(trial_id=f"{i:05d}", config=config), point))
    ended = [0, 0]
    for epoch in [*spec.fidelity.rungs, spec.fidelity.max_epochs]:
        state = names.COMPLETE if epoch == spec.fidelity.max_epochs else names.RUNNING
        going = []
        for trial, point in live:
            accuracy, faithfulness = scores(point, epoch, spec.fidelity.max_epochs)
            result = {"epoch": epoch, "state": state, ACCURACY: accuracy, FAITHFULNESS: faithfulness, **_ERRORS}
            if state == names.RUNNING:
                decision = clock("report", lambda t=trial, r=result: scheduler.on_trial_result(None, t, r))  # type: ignore[misc]
                if decision == TrialScheduler.CONTINUE:
                    going.append((trial, point))
                    continue
            ended[state == names.RUNNING] += 1
            clock("tell", lambda t=trial, r=result: searcher.on_trial_complete(t.trial_id, result=r))  # type: ignore[misc]
        live = going
    return ended[0], ended[1]


def main(argv: Sequence[str] | None = None) -> None:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.control", description=__doc__)
    parse.add_argument("--trials", type=int, default=5_000, help="of the study, those that are measured included")
    parse.add_argument("--workers", type=int, default=1_000, help="that run a trial each")
    parse.add_argument("--sampler", default="auto")
    args = parse.parse_args(argv)
    if args.workers > args.trials:
        parse.error(f"--workers {args.workers}: more than the {args.trials} trials")
    spec = load_spec(SPEC, overrides={"budget.trials": args.trials, "sampler": args.sampler})
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / names.OPTUNA_FILE
        fill(spec, file, args.trials - args.workers)
        complete, stopped = drive(spec, file, args.workers, clock)
    print(
        f"{args.trials - args.workers} trials over, then {args.workers} at once: {complete} complete, {stopped} stopped"
    )
    print(f"{'milliseconds':16}{'median':>9}{'95 %':>9}{'largest':>9}{'calls':>7}")
    for name, values in clock.milliseconds.items():
        middle, high, largest = clock.quantiles(name)
        print(f"{name:16}{middle:>9.2f}{high:>9.2f}{largest:>9.1f}{len(values):>7}")
    line = {
        "trials": args.trials,
        "workers": args.workers,
        "ask_tell_ms": round(clock.quantiles("ask")[0] + clock.quantiles("tell")[0], 2),
        "report_ms": round(clock.quantiles("report")[0], 3),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
