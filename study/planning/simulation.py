"""A study played through without training anything: what it takes, many times over, with the spread of that.

One play draws the points that a search could ask for, how much each trial differs from what was timed, and who is
stopped at a rung by the very rule of the study (:mod:`study.search.rungs`); trials follow one another as they would on
a cluster that runs ``at_once`` of them.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from study.config import EvaluationConfig, TrialConfig
from study.planning.speeds import Profile, Speed
from study.search.rungs import Rungs
from study.spec.space import Choice, FloatRange, IntRange, Point, Scalar, active, complete, ordered
from study.spec.study_spec import StudySpec

# Seconds, in units of the time in which a fresh process loads the stack (`Profile.start`), so that they follow the
# machine. Estimates; docs/results.md has them beside runs of the quick study.
SESSION = 6.0  # from the command to the first trial's first step: books, data, Ray, the workers' imports
TRIAL = 0.5  # of each trial beside its epochs: opening, ledger, artifacts, Ray's way there and back
EPOCH = 0.04  # of each epoch's report
END = 0.7  # of closing a session
_SESSION_SPREAD = 0.2  # standard deviations of logarithms
_MACHINE_SPREAD = 0.08  # how much a shared machine's speed moves between planning and running
_RUNG_COMPARISONS = 40_000  # that all plays together may make: seconds of planning


@dataclass(frozen=True)
class Images:
    """How many images a trial trains on and validates with, and their classes."""

    train: int
    validation: int
    n_classes: int


@dataclass(frozen=True)
class Outcome:
    """One play: seconds on the clock, those before the first step, seconds of all trials together; trials that ended,
    those that were stopped; bytes left.
    """

    wall: float
    start: float
    busy: float
    ended: int
    stopped: int
    disk: float
    out_of_time: bool


def plays(spec: StudySpec) -> int:
    """How often to play: 400 times, fewer where a study is so large that its mean hardly varies."""
    rungs = len(spec.fidelity.rungs) if spec.halving else 0
    return max(20, min(400, _RUNG_COMPARISONS // (spec.budget.trials * max(rungs, 1))))


def play(spec: StudySpec, profile: Profile, images: Images, at_once: int, rng: np.random.Generator) -> Outcome:
    """Play once. Raises :class:`study.errors.InputError` for a network that the profile does not know."""
    speed = math.exp(rng.normal(0, math.hypot(_MACHINE_SPREAD, profile.spread / 2)))
    session = profile.start * SESSION * math.exp(rng.normal(0, _SESSION_SPREAD))
    overhead = profile.start * TRIAL * math.exp(rng.normal(0, 0.5))
    end = profile.start * END
    deadline = math.inf if spec.budget.time is None else session + spec.budget.time
    halving = spec.halving
    rungs = Rungs(
        ["maximize"] * len(spec.targets),
        spec.fidelity.rungs if halving else (),
        seed=int(rng.integers(2**31)),
        **(halving.model_dump(exclude={"keep_baselines"}) if halving else {}),
    )
    marks = (*spec.fidelity.rungs, spec.fidelity.max_epochs)
    # How good a trial is and how well a rung tells it, in standard deviations of what trials reach.
    faith, error = rng.uniform(0.5, 0.95), rng.uniform(0.05, 0.3)
    points = sampled(spec, rng)
    baselines = (
        [p for p in spec.first_points() if p.get("reg_weight") == 0] if halving and halving.keep_baselines else []
    )
    events: list[tuple[float, int, int]] = [(session, -slot, -1) for slot in range(min(at_once, spec.budget.trials))]
    trials: list[tuple[list[float], np.ndarray, bool]] = []  # seconds up to each mark, quality, whether it is kept
    wall, busy, ended, stopped, disk = session, 0.0, 0, 0, 0.0
    while events:
        now, number, stage = heapq.heappop(events)
        if now >= deadline:
            wall, busy = deadline, busy + deadline - now
            continue
        wall = now
        if stage >= 0:
            seconds, quality, kept = trials[number]
            goes_on = stage + 1 < len(marks)
            if goes_on and halving and marks[stage] < spec.fidelity.max_epochs:
                shown = faith * quality + math.sqrt(1 - faith**2) * rng.normal(size=len(quality))
                goes_on = rungs.add(number, marks[stage], shown.tolist(), [error] * len(quality)) or kept
                stopped += not goes_on
            if goes_on:
                busy += seconds[stage + 1]
                heapq.heappush(events, (now + seconds[stage + 1], number, stage + 1))
                continue
            ended += 1
        point = next(points, None) if len(trials) < spec.budget.trials else None
        if point is not None:
            config = spec.trial_config(point)
            factor = speed * math.exp(rng.normal(0, profile.spread / 2))
            seconds = [factor * s for s in segments(config, profile, images)]
            seconds[0] += overhead
            trials.append((seconds, rng.normal(size=len(spec.targets)), point in baselines))
            disk += files(config, profile, images)
            busy += seconds[0]
            heapq.heappush(events, (now + seconds[0], len(trials) - 1, 0))
    return Outcome(
        wall=wall + end,
        start=session,
        busy=busy,
        ended=ended,
        stopped=stopped,
        disk=disk,
        out_of_time=wall >= deadline,
    )


def segments(config: TrialConfig, profile: Profile, images: Images) -> list[float]:
    """Seconds of a trial up to its first rung, from there to the next one, and so on to the end."""
    speed = profile.speed(config)
    epoch = (
        images.train / config.batch_size * speed.step(config)
        + images.validation * speed.classified
        + speed.saved
        + profile.start * EPOCH
    )
    score = scoring(config.evaluation, speed, images)
    marks = (0, *config.rungs, config.epochs)
    return [(b - a) * epoch + score for a, b in itertools.pairwise(marks)]


def scoring(evaluation: EvaluationConfig, speed: Speed, images: Images) -> float:
    """Seconds of scoring a network's maps once."""
    scored = scored_images(evaluation, images)
    return scored * speed.scored + min(evaluation.masking_images or scored, scored) * speed.masked


def scored_images(evaluation: EvaluationConfig, images: Images) -> int:
    return min(evaluation.images or images.validation, images.validation)


def files(config: TrialConfig, profile: Profile, images: Images) -> float:
    """Bytes that a trial leaves: checkpoint, network and per-image table, the latter two as artifacts as well."""
    speed = profile.speed(config)
    artifacts = speed.model_bytes + speed.table_bytes + scored_images(config.evaluation, images) * speed.row_bytes
    return speed.checkpoint_bytes + 2 * artifacts


def sampled(spec: StudySpec, rng: np.random.Generator) -> Iterator[Point]:
    """Points as a search may ask for them: those that are always tried first, then draws from the space.

    A sampler that learns prefers some choices, nobody knows which; so each choice's shares are drawn as well, all
    shares being equally likely. A random one has no preferences, and a grid nothing to draw.
    """
    yield from spec.first_points()
    if spec.sampler == "grid":
        return
    learns = spec.sampler != "random"
    shares: dict[str, Mapping[Scalar, float]] = {}
    for name, parameter in spec.space.items():
        if isinstance(parameter, Choice):
            shares[name] = _shares(parameter.choice, learns, rng)
        elif isinstance(parameter, FloatRange) and parameter.zero:
            shares[name] = _shares((True, False), learns, rng)
    while True:
        point: Point = {}
        for name in ordered(spec.space):
            if not active(spec.space, name, point):
                continue
            parameter = spec.space[name]
            if name in shares:
                drawn = list(shares[name])[int(rng.choice(len(shares[name]), p=list(shares[name].values())))]
                if isinstance(parameter, Choice):
                    point[name] = drawn
                    continue
                if drawn:
                    point[name] = 0.0
                    continue
            assert isinstance(parameter, (FloatRange, IntRange))
            low, high = parameter.bounds
            value = math.exp(rng.uniform(math.log(low), math.log(high))) if parameter.log else rng.uniform(low, high)
            point[name] = min(high, max(low, round(value) if isinstance(parameter, IntRange) else float(value)))
        yield complete(spec.space, point)


def _shares(values: tuple[Scalar, ...], learns: bool, rng: np.random.Generator) -> dict[Scalar, float]:
    n = len(values)
    shares = rng.dirichlet(np.ones(n)) if learns else np.full(n, 1 / n)
    return dict(zip(values, (float(s) for s in shares), strict=True))
