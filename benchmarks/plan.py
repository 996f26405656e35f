"""A plan against the study that it is for, several times over: ``python -m benchmarks.plan``.

Each round types ``study.run SPEC --plan`` and then the study itself, in a folder of its own, and compares seconds per
step and per evaluation, and the study's duration with the plan's 10-90 % interval. The
table ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from study import metrics, names
from study.config import TrialConfig
from study.planning.plan import image_counts, make_plan, size
from study.planning.simulation import Images
from study.planning.speeds import Profile
from study.spec.study_spec import load_spec

_TOLERANCE = 0.25


@dataclass(frozen=True)
class Round:
    """One plan and one study: seconds on the clock predicted (10, 50, 90 %) and measured, bytes, and ratios.

    ``start``: seconds until the first trial's first step. ``ratios``: measured / predicted by network and kind of work.
    """

    predicted: tuple[float, float, float]
    measured: float
    start: tuple[float, float]
    files: tuple[float, float]
    ratios: dict[str, float]

    @property
    def covered(self) -> bool:
        return self.predicted[0] <= self.measured <= self.predicted[2]

    @property
    def within(self) -> bool:
        return all(1 - _TOLERANCE <= r <= 1 + _TOLERANCE for r in self.ratios.values())


def one_round(specification: Path, folder: Path) -> Round:
    """Plan, run, compare."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "study.run", str(specification), "--storage", str(folder)]
    file = folder / "profile.json"
    subprocess.run([*command, "--plan", "--save-profile", str(file)], env=environment, check=True, capture_output=True)
    begin, first_report = time.perf_counter(), 0.0
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as study:
        assert study.stdout is not None
        for line in study.stdout:
            if line.startswith("trial ") and not first_report:
                first_report = time.perf_counter() - begin
    measured = time.perf_counter() - begin
    if study.returncode:
        raise SystemExit(f"the study ended with exit code {study.returncode}")
    spec, profile = load_spec(specification), Profile.read(file)
    images = image_counts(spec)
    plan = make_plan(spec, profile, images, at_once=profile.slots)
    trials = folder / specification.stem / "trials"
    histories = [_history(checkpoint) for checkpoint in sorted(trials.glob(f"*/{names.CHECKPOINT_FILE}"))]
    first_epochs = [h[0][metrics.EPOCH_SECONDS] + h[0][metrics.EVALUATION_SECONDS] for _, h in histories[:2]]
    stored = [p for where in (trials, trials.parent / "artifacts") for p in where.rglob("*") if p.is_file()]
    return Round(
        predicted=plan.interval("wall"),
        measured=measured,
        start=(plan.interval("start")[1], first_report - min(first_epochs)),
        files=(plan.interval("disk")[1], sum(p.stat().st_size for p in stored)),
        ratios=ratios(profile, images, histories),
    )


def _history(checkpoint: Path) -> tuple[TrialConfig, list[dict[str, float]]]:
    from study.training.checkpoint import load_checkpoint

    header = load_checkpoint(checkpoint).header
    return TrialConfig.from_dict(header["config"]), header["history"]


def ratios(
    profile: Profile, images: Images, histories: Sequence[tuple[TrialConfig, list[dict[str, float]]]]
) -> dict[str, float]:
    """Median measured seconds over predicted ones, by network and kind: over all epochs of the study."""
    found: dict[str, list[float]] = defaultdict(list)
    for config, history in histories:
        speed = profile.speed(config)
        kind = "plain step" if config.reg_weight == 0 else "regularized step"
        scored = min(config.evaluation.images or images.validation, images.validation)
        for report in history:
            step = report[metrics.EPOCH_SECONDS] * config.batch_size / images.train
            found[f"{config.network} {kind}"].append(step / speed.step(config))
            if metrics.FAITHFULNESS.ledger_name in report:
                evaluation = images.validation * speed.classified + scored * speed.scored
                found[f"{config.network} evaluation"].append(report[metrics.EVALUATION_SECONDS] / evaluation)
    return {name: statistics.median(values) for name, values in sorted(found.items())}


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__.splitlines()[0])
    parse.add_argument("spec", nargs="?", default="search_spaces/quick.yaml")
    parse.add_argument("--rounds", type=int, default=5)
    return parse


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    print(f"{arguments.spec} · {platform.machine()} · {os.cpu_count()} CPUs")
    print(f"{'round':<6}{'10 %':>7}{'median':>8}{'90 %':>7}{'measured':>10}  {'covered':<8}"
          f"{'start: predicted, measured':>28}{'files: predicted, measured':>28}")  # fmt: skip
    rounds = []
    for i in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            r = one_round(Path(arguments.spec), Path(folder))
        rounds.append(r)
        low, middle, high = r.predicted
        covered = "yes" if r.covered else "NO"
        print(f"{i + 1:<6}{low:>6.0f}s{middle:>7.0f}s{high:>6.0f}s{r.measured:>9.0f}s  {covered:<8}"
              f"{f'{r.start[0]:.0f} s, {r.start[1]:.0f} s':>28}{f'{size(r.files[0])}, {size(r.files[1])}':>28}",
              flush=True)  # fmt: skip
        print("      " + "   ".join(f"{name} {value:.2f}" for name, value in r.ratios.items()), flush=True)
    every = [value for r in rounds for value in r.ratios.values()]
    print("measured seconds / predicted seconds in the lines below each round")
    result = {
        "covered": sum(r.covered for r in rounds),
        "rounds": len(rounds),
        "rounds_within_25_percent": sum(r.within for r in rounds),
        "ratio_min": round(min(every), 3),
        "ratio_median": round(statistics.median(every), 3),
        "ratio_max": round(max(every), 3),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
