"""The terms of a study beside its space: how long trials train, what they occupy, when they and the study end."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from study.errors import InputError
from study.metrics import OBJECTIVES
from study.spec.space import Strict


class Fidelity(Strict):
    """``max_epochs`` of a full trial; ``rungs``: epochs after which it is also scored."""

    max_epochs: int = Field(ge=1, le=100_000, strict=True)
    rungs: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Fidelity:
        for rung in self.rungs:
            if not 1 <= rung < self.max_epochs:
                raise ValueError(f"rungs: {rung} is not between 1 and max_epochs - 1 = {self.max_epochs - 1}")
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs: {list(self.rungs)} must rise without repetition")
        return self


class Resources(Strict):
    """What one trial occupies. A fraction of a GPU lets several trials share it."""

    cpus: float = Field(default=1, gt=0, le=4096)
    gpus: float = Field(default=0, ge=0, le=64)

    def slots(self, cpus: float, gpus: float) -> int:
        """How many such trials run at once on so many CPUs and GPUs of one machine."""
        kinds = ((cpus, self.cpus), (gpus, self.gpus))
        return int(min(have / need for have, need in kinds if need > 0) + 1e-9)


class Budget(Strict):
    """Whichever ends first ends the study; ``time`` in seconds (written e.g. ``30m``, ``1h30m``)."""

    trials: int = Field(ge=1, le=1_000_000, strict=True)
    time: float | None = Field(default=None, gt=0)
    retries: int = Field(default=2, ge=0, le=100, strict=True)

    @field_validator("time", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value


class Stopping(Strict):
    """Early stopping by multi-objective successive halving (Li et al. 2020; Schmucker et al. 2021).

    At every rung the best 1/``reduction`` of the trials that reached it go on, by non-dominated rank and, within the
    rank at the cut, by crowding distance. ``noise_tolerance``: how many standard errors better a trial may be taken to
    be before it is stopped. ``brackets``: how many different first rungs trials are spread over. ``keep_baselines``:
    known points with lambda = 0 are trained to the end, so that there is always something to compare with.
    """

    reduction: float = Field(default=3, gt=1, le=100)
    brackets: int = Field(default=1, ge=1, le=20)
    noise_tolerance: float = Field(default=1, ge=0, le=10)
    keep_baselines: bool = True


class Constraint(Strict):
    """``{min: a}``, ``{max: b}`` or both: trials whose metric lies outside are not on the front."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _check(self) -> Constraint:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both, e.g. {min: 60}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def violation(self, value: float) -> float:
        """How far ``value`` lies outside; at most 0 where it is allowed (Optuna's convention)."""
        below = self.min - value if self.min is not None else float("-inf")
        above = value - self.max if self.max is not None else float("-inf")
        return max(below, above)


def check_constrained(names: list[str]) -> None:
    """Raises :class:`InputError` where a constrained metric is not one that a trial reports."""
    for name in names:
        if name not in OBJECTIVES:
            raise InputError(f"unknown metric; choose from {', '.join(OBJECTIVES)}", key=f"constraints.{name}")


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``30m``, ``1h30m`` or ``2d``. Raises ValueError."""
    match = re.fullmatch(
        r"\s*(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?\s*", text
    )
    if not match or not any(match.groups()):
        raise ValueError(f"{text!r} is not a duration; write e.g. 90s, 30m or 1h30m")
    seconds = sum(float(n or 0) * unit for n, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time at all; write e.g. 30m")
    return seconds
