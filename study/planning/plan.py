"""What a study will cost, before it starts: ``python -m study.run SPEC --plan``.

A few real steps and scorings of each network are timed here (:mod:`study.planning.timing`), or taken from a profile
that was recorded on the machines that will do the work; then the study is played through many times
(:mod:`study.planning.simulation`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from study.errors import InputError
from study.planning.simulation import Images, Outcome, play, plays, scored_images, scoring
from study.planning.speeds import Profile, Speed
from study.spec.study_spec import StudySpec

LOW, HIGH = 0.1, 0.9  # the interval that is shown
_SPEEDS = "{:<14}{:>6}{:>13}{:>13}{:>13}{:>14}{:>16}"


@dataclass(frozen=True)
class Plan:
    """A study's plays. ``price``: of a GPU-hour, or of a machine-hour where trials need no GPU; None: not asked."""

    spec: StudySpec
    profile: Profile
    images: Images
    at_once: int
    price: float | None
    outcomes: tuple[Outcome, ...]

    def interval(self, field: str) -> tuple[float, float, float]:
        """The 10 %, 50 % and 90 % quantile of a field of :class:`study.planning.simulation.Outcome`."""
        values = sorted(float(getattr(o, field)) for o in self.outcomes)
        low, middle, high = (_quantile(values, q) for q in (LOW, 0.5, HIGH))
        return low, middle, high

    @property
    def units(self) -> int:
        """GPUs that are paid for; machines, where trials need no GPU."""
        gpus = self.spec.resources.gpus
        return math.ceil(self.at_once * gpus - 1e-9) if gpus else math.ceil(self.at_once / self.profile.slots)

    def lines(self) -> list[str]:
        """For people to read."""
        spec, images = self.spec, self.images
        text = [
            f"{spec.budget.trials} trials × {spec.fidelity.max_epochs} epochs × {images.train:,} images, "
            f"{self.at_once} at once{self._stopping()}",
            f"timed {self.profile.at_once} at once on {self.profile.device} ({self.profile.stack}, "
            f"{self.profile.seconds:.0f} s)",
            "",
            _SPEEDS.format("network", "batch", "plain", "regularized", "accuracy", "faithfulness", "faithfulness"),
            _SPEEDS.format("", "", *["ms a step"] * 2, *["ms an image"] * 2, "% of training"),
        ]
        text += [self._speed(s) for s in self.profile.speeds]
        unit = "GPU" if spec.resources.gpus else "CPU"
        per_trial = (spec.resources.gpus or spec.resources.cpus) / 3600
        text += ["", f"{f'of {len(self.outcomes)} plays':<20}{'10 %':>10}{'median':>10}{'90 %':>10}"]
        text.append(_row("on the clock", [duration(v) for v in self.interval("wall")]))
        text.append(_row(f"{unit}-hours of trials", [number(per_trial * v) for v in self.interval("busy")]))
        text.append(_row("trials that end", [f"{v:.0f}" for v in self.interval("ended")]))
        if spec.halving:
            text.append(_row("  of them early", [f"{v:.0f}" for v in self.interval("stopped")]))
        text.append(_row("files", [size(v) for v in self.interval("disk")]))
        if self.price is not None:
            of = "GPU" if spec.resources.gpus else "machine"
            paid = [self.price * self.units * v / 3600 for v in self.interval("wall")]
            text.append(_row("cost", [number(v) for v in paid]))
            text.append(f"  {self.units} {of}{'s' * (self.units != 1)} all the time at {self.price:g} per {of}-hour")
        return [*text, "", self._first(), *self._warnings()]

    def _speed(self, speed: Speed) -> str:
        """A network's times, and what all its scorings take of a whole training, regularized or plain."""
        evaluation = self.spec.evaluation_config
        score = scoring(evaluation, speed, self.images)
        seconds = (speed.plain, speed.regularized, speed.classified, score / scored_images(evaluation, self.images))
        scorings = len(self.spec.fidelity.rungs) + 1
        steps = self.spec.fidelity.max_epochs * self.images.train / speed.batch_size
        shares = [f"{100 * scorings * score / (steps * step):.0f}" for step in (speed.regularized, speed.plain)]
        times = [number(1000 * t) for t in seconds]
        return _SPEEDS.format(speed.network, speed.batch_size, *times, " to ".join(shares))

    def _stopping(self) -> str:
        halving = self.spec.halving
        if halving is None:
            return ", none stopped early"
        rungs = ", ".join(str(r) for r in self.spec.fidelity.rungs)
        return f"; after epoch {rungs} the best 1/{halving.reduction:g} go on"

    def _first(self) -> str:
        budget = self.spec.budget
        if budget.time is None:
            return f"ends with the {budget.trials} trials; there is no time budget"
        share = sum(o.out_of_time for o in self.outcomes) / len(self.outcomes)
        line, chance = ("time", share) if share > 0.5 else ("trials", 1 - share)
        what = f"time budget of {duration(budget.time)}" if line == "time" else f"budget of {budget.trials} trials"
        other = f"{budget.trials} trials" if line == "time" else f"time budget of {duration(budget.time)}"
        return f"ends with the {what}, not the {other}, in {100 * chance:.0f} % of the plays"

    def _warnings(self) -> list[str]:
        text = []
        if self.profile.scaled:
            text.append(
                f"note: {', '.join(self.profile.scaled)}: a step takes so long here that a few images were timed and "
                "multiplied"
            )
        if self.spec.resources.gpus and self.profile.device.startswith("CPU"):
            text.append(
                "note: trials ask for a GPU and this was timed on a CPU, which is many times slower; on such a machine "
                "type `python -m study.run --plan --save-profile FILE`, here `--plan --profile FILE`"
            )
        return text


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<20}" + "".join(f"{cell:>10}" for cell in cells)


def _quantile(values: Sequence[float], q: float) -> float:
    """Of sorted values, between neighbours on a straight line."""
    at = q * (len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def number(value: float) -> str:
    """Three digits, without an exponent."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, digits)}f}"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def make_plan(spec: StudySpec, profile: Profile, images: Images, *, at_once: int, price: float | None = None) -> Plan:
    """Play the study. The same specification, profile and images give the same plan.

    Raises :class:`InputError` for a network that the profile does not know.
    """
    import numpy as np

    at_once = min(at_once, spec.budget.trials)
    rng = np.random.default_rng(spec.seed)
    outcomes = tuple(play(spec, profile, images, at_once, rng) for _ in range(plays(spec)))
    return Plan(spec, profile, images, at_once, price, outcomes)


def plan_study(
    spec: StudySpec,
    name: str,
    *,
    at_once: int | None = None,
    price: float | None = None,
    profile_file: str | None = None,
    save_file: str | None = None,
) -> int:
    """Time or read, play, print."""
    for option, value in (("--at-once", at_once), ("--price", price)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{option} {value:g}: must be above 0")
    save = Path(save_file) if save_file else None
    if save is not None and not save.absolute().parent.is_dir():
        raise InputError(f"--save-profile {save}: there is no folder {save.absolute().parent}; make it first")
    if save is not None and save.is_dir():
        raise InputError(f"--save-profile {save}: is a folder; name a file in it")
    if profile_file is not None:
        profile = Profile.read(Path(profile_file))
        images = image_counts(spec)
        at_once = at_once or profile.slots
    else:
        from study.planning.timing import measure, slots

        images = image_counts(spec)
        at_once = at_once or slots(spec)
        profile = measure(spec, n_classes=images.n_classes, at_once=min(at_once, spec.budget.trials))
    plan = make_plan(spec, profile, images, at_once=at_once, price=price)
    print("\n".join([f"study {name}: {plan.lines()[0]}", *plan.lines()[1:]]))
    if save is not None:
        profile.write(save)
        print(f"profile  {save}")
    return 0


def image_counts(spec: StudySpec) -> Images:
    """Of the study's data, or of CIFAR-100 where it would have to be fetched first."""
    config = spec.data_config
    if config.source == "cifar100":
        validation = round(50_000 * config.validation_fraction)
        train = 50_000 - validation
        return Images(
            min(train, config.train_images or train),
            min(validation, config.validation_images or validation),
            100 if config.labels == "fine" else 20,
        )
    from study.data import open_dataset

    dataset = open_dataset(config, progress=True)
    return Images(len(dataset.train.labels), len(dataset.validation.labels), dataset.n_classes)
