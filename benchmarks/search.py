"""Replay whole searches on recorded learning curves: ``python -m benchmarks.search [--seeds 100-129]``.

Every contender gets the worker-hours that stock TPE without early stopping needs for 60 full trials. Judged by the
hypervolume of the complete trials' true values (reference point: accuracy 0, faithfulness 0), per worker-hour spent.
Prints a table with 95 % bootstrap intervals over seeds and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import CONTENDERS, MAIN, contender
from benchmarks.replay import Cluster, Replay
from benchmarks.surrogate import Surrogate
from study import names
from study.search.front import hypervolume
from study.spec.space import Point
from study.spec.study_spec import StudySpec, load_spec

HERE = Path(__file__).parent / "data"
SPEC, CURVES = HERE / "space.yaml", HERE / "curves.parquet"
YARDSTICK = "fifo_tpe"
TRIALS = 60  # of the yardstick
_MOST_TRIALS = 5_000  # of the others, whose budget is time
_RESAMPLES = 5_000
_REFERENCE = np.zeros(2)


@dataclass
class Progress:
    """A search as it is judged: after ``seconds`` (n,) of the study's time, ``volume`` (n,), both rising from 0."""

    seconds: np.ndarray
    volume: np.ndarray
    budget: float
    complete: int
    begun: int
    dominating: int
    wrong_stops: int

    @classmethod
    def judge(cls, replay: Replay, truth: Any, budget: float) -> Progress:
        ended = [e for e in replay.ended if e.state == names.COMPLETE]
        seconds, volumes, values = [0.0], [0.0], []
        for trial in ended:
            values.append(np.maximum(truth(trial.point), 0.0))
            seconds.append(trial.seconds)
            volumes.append(hypervolume(np.array(values), _REFERENCE))
        return cls(
            np.array(seconds), np.array(volumes), budget, len(ended), len(replay.ended), replay.dominating,
            replay.wrong_stops,
        )  # fmt: skip

    def until(self, target: float) -> float:
        """Seconds until ``target`` was reached; infinite where it was not."""
        reached = np.flatnonzero(self.volume >= target * (1 - 1e-9))
        return float(self.seconds[reached[0]]) if len(reached) else np.inf

    def area(self) -> float:
        """Mean volume over the budget."""
        edges = np.append(self.seconds, self.budget)
        return float((np.diff(edges) * self.volume).sum() / self.budget)

    def at(self, share: float) -> float:
        """Volume after a share of the budget."""
        return float(self.volume[np.searchsorted(self.seconds, share * self.budget, side="right") - 1])


_surrogate: Surrogate
_workers: int


def _prepare(surrogate: Surrogate, workers: int) -> None:
    global _surrogate, _workers
    _surrogate, _workers = surrogate, workers


def replay_seed(task: tuple[int, tuple[str, ...]]) -> tuple[int, dict[str, Progress]]:
    """All contenders with one seed; the yardstick first: its time is the others' budget."""
    seed, methods = task
    spec = _surrogate.spec.model_copy(update={"seed": seed})
    spec = spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": _MOST_TRIALS})})
    cluster = Cluster(_surrogate, workers=_workers, epochs=spec.fidelity.max_epochs)
    yardstick = cluster.run(contender(YARDSTICK)(spec), seed=seed, trials=TRIALS)
    budget = yardstick.seconds
    found = {YARDSTICK: Progress.judge(yardstick, _surrogate.truth, budget)}
    for name in methods:
        if name != YARDSTICK:
            replay = cluster.run(contender(name)(spec), seed=seed, trials=_MOST_TRIALS, seconds=budget)
            found[name] = Progress.judge(replay, _surrogate.truth, budget)
    return seed, found


def ideal(surrogate: Surrogate, n: int = 2_000) -> float:
    """Volume of the truth at ``n`` random points: what volumes are shown as a share of."""
    from benchmarks.record_curves import points

    found: list[Point] = points(surrogate.spec, n)
    return hypervolume(np.maximum([surrogate.truth(p) for p in found], 0.0), _REFERENCE)


def interval(values: np.ndarray, statistic: Any = np.median) -> tuple[float, float, float]:
    """A statistic over seeds and its 95 % bootstrap interval."""
    values = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(statistic(values[draws], axis=1), [0.025, 0.975], method="nearest")
    return float(statistic(values)), float(low), float(high)


def ratios(found: dict[int, dict[str, Progress]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Time to the yardstick's final volume, per seed: over the yardstick's own, and over its whole budget."""
    own, whole = [], []
    for progress in found.values():
        target = progress[YARDSTICK].volume[-1]
        reached = progress[name].until(target)
        own.append(reached / progress[YARDSTICK].until(target))
        whole.append(reached / progress[YARDSTICK].budget)
    return np.array(own), np.array(whole)


def table(found: dict[int, dict[str, Progress]], methods: Sequence[str], full: float, workers: int) -> dict[str, Any]:
    """Print a line per contender; the JSON line's content."""
    budget = np.median([p[YARDSTICK].budget for p in found.values()]) * workers / 3600
    print(f"{len(found)} seeds · {workers} workers · {budget:.1f} worker-hours each · volume of {full:.0f} is 100 %")
    print("hours: until fifo_tpe's last volume is reached, over fifo_tpe's own; area: mean volume over the budget")
    print(f"{'':21}{'hours':>7} {'95 % interval':>15} {'reached':>8} {'area %':>7} {'end %':>6}"
          f" {'complete':>9} {'of':>5} {'wrong stops':>12}")  # fmt: skip
    line: dict[str, Any] = {"seeds": len(found), "wrong_stop_rate": {}, "hours": {}, "area": {}}
    for name in methods:
        own, whole = ratios(found, name)
        mine = [p[name] for p in found.values()]
        middle, low, high = interval(own)
        area = float(np.mean([m.area() for m in mine])) / full
        dominating, wrong = sum(m.dominating for m in mine), sum(m.wrong_stops for m in mine)
        rate = wrong / dominating if dominating else 0.0
        line["hours"][name] = [_finite(middle), _finite(low), _finite(high)]
        line["area"][name] = round(area, 4)
        line["wrong_stop_rate"][name] = round(rate, 4)
        print(
            f"{name:21}{_show(middle):>7} {f'{_show(low)} to {_show(high)}':>15} {np.isfinite(own).mean():>8.0%}"
            f" {100 * area:>7.1f} {100 * np.mean([m.volume[-1] for m in mine]) / full:>6.1f}"
            f" {np.median([m.complete for m in mine]):>9.0f} {np.median([m.begun for m in mine]):>5.0f}"
            f" {f'{wrong}/{dominating}':>12}"
        )
        line.setdefault("hours_of_budget", {})[name] = _finite(interval(whole)[0])
    if "ours" in methods:
        line["worker_hours_vs_fifo_tpe"] = line["hours"]["ours"][0]
        line["area_minus_asha"] = {}
        print("\nours minus ..., area in percentage points, mean of the paired differences and 95 % interval")
        for name in methods:
            if name != "ours":
                pairs = np.array([p["ours"].area() - p[name].area() for p in found.values()]) / full
                middle, low, high = interval(pairs, np.mean)
                print(f"  {name:21}{100 * middle:+6.2f}  [{100 * low:+.2f}, {100 * high:+.2f}]")
                if name.startswith("asha"):
                    line["area_minus_asha"][name] = [round(x, 4) for x in (middle, low, high)]
    return line


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def _show(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "never"


def describe(surrogate: Surrogate) -> None:
    """What the surrogate rests on and how far it errs."""
    print(f"{len(surrogate.points)} recorded curves, scores after epochs {', '.join(map(str, surrogate.epochs))}")
    for name, unit in (("accuracy", "%"), ("faithfulness", "points")):
        errors = surrogate.left_out[name]
        print(
            f"{name}: left out and predicted, error {errors['error']:.1f} {unit} (predicting the mean: "
            f"{errors['of_mean']:.1f}), rank correlation {errors['rank_correlation']:.2f}; "
            f"one training's noise {surrogate.between_seeds[name]:.1f} {unit}"
        )
        print(f"  rank correlation with the end, by epoch: {', '.join(f'{r:.2f}' for r in surrogate.settled[name])}")


def main(argv: Sequence[str] | None = None) -> None:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parse.add_argument("--seeds", default="100-129", help="first-last; those below 100 are for tuning")
    known = f"{', '.join(CONTENDERS)}, and ours:KEY=VALUE for ours with something changed"
    parse.add_argument("--methods", default=",".join(MAIN), help=f"of {known}")
    parse.add_argument("--workers", type=int, default=8, help="of the simulated cluster")
    parse.add_argument("--processes", type=int, default=2, help="of this machine")
    parse.add_argument("--curves", type=Path, default=CURVES)
    args = parse.parse_args(argv)
    first, _, last = args.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    methods = tuple(dict.fromkeys([YARDSTICK, *args.methods.split(",")]))
    for name in methods:
        try:
            contender(name)
        except (KeyError, ValueError):
            parse.error(f"--methods: no {name}; there are {known}")
    if not args.curves.is_file():
        parse.error(f"--curves {args.curves}: no such table; `python -m benchmarks.record_curves` records one")
    spec: StudySpec = load_spec(SPEC)
    surrogate = Surrogate.load(args.curves, spec)
    from benchmarks.record_curves import recorded_protocol

    print(f"faithfulness was recorded under {recorded_protocol(args.curves)}")
    describe(surrogate)
    start = time.perf_counter()
    context = multiprocessing.get_context("fork")
    with context.Pool(args.processes, _prepare, (surrogate, args.workers)) as pool:
        found = dict(pool.imap_unordered(replay_seed, [(seed, methods) for seed in seeds]))
    line = table(dict(sorted(found.items())), methods, ideal(surrogate), args.workers)
    took = time.perf_counter() - start
    print(f"\n{len(found) * len(names)} studies in {took:.0f} s")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
