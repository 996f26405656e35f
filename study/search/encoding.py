"""Points of a space as Optuna's parameters, in two encodings that differ in a range with ``zero`` alone.

Stored: the category "is it 0" beside the range, as a person expects it in Optuna's storage.
Sampled: the range goes on below its lower end, where it means 0. A sampler would draw the category half of the time,
and would not learn from it that the smallest values resemble 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from study.search.bayesian import ZERO_SHARE
from study.spec.space import Choice, FloatRange, IntRange, Parameter, Point, Scalar, ordered
from study.spec.study_spec import StudySpec

_ZERO_SUFFIX = "_is_zero"  # of the category's name


def encode(spec: StudySpec, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """A point as it is stored."""
    params: dict[str, Scalar] = {}
    for name, value in point.items():
        parameter = spec.space[name]
        if _has_zero(parameter):
            params[name + _ZERO_SUFFIX] = value == 0
            if value == 0:
                continue
        params[name] = float(value) if isinstance(parameter, FloatRange) else value
    return params


def decode(spec: StudySpec, params: Mapping[str, Scalar]) -> Point:
    """The point that :func:`encode` has stored."""
    point: Point = {}
    for name in ordered(spec.space):
        if params.get(name + _ZERO_SUFFIX):
            point[name] = 0.0
        elif name in params:
            point[name] = params[name]
    return point


def distributions(spec: StudySpec) -> dict[str, BaseDistribution]:
    """Optuna's distribution of every parameter that :func:`encode` can name."""
    found: dict[str, BaseDistribution] = {}
    for name in ordered(spec.space):
        if _has_zero(spec.space[name]):
            found[name + _ZERO_SUFFIX] = CategoricalDistribution([False, True])
        found[name] = _distribution(spec.space[name])
    return found


def suggest_point(spec: StudySpec, ask: Callable[[str, BaseDistribution], Any]) -> Point:
    """``ask`` for the stored value of every active parameter: what is decided already is answered as it was."""
    kinds = distributions(spec)
    point: Point = {}
    for name in ordered(spec.space):
        if not spec.active(name, point):
            continue
        if name + _ZERO_SUFFIX in kinds and ask(name + _ZERO_SUFFIX, kinds[name + _ZERO_SUFFIX]):
            point[name] = 0.0
        else:
            point[name] = ask(name, kinds[name])
    return point


def sampled_distribution(parameter: Parameter) -> BaseDistribution:
    """What a sampler draws from."""
    return _distribution(parameter, _below(parameter, 1.0) if _has_zero(parameter) else None)


def to_sampled(parameter: Parameter, value: Scalar) -> Scalar:
    """A parameter's value as a sampler sees it."""
    if isinstance(parameter, FloatRange):
        return _below(parameter, 0.5) if parameter.zero and value == 0 else float(value)
    return value


def from_sampled(parameter: Parameter, value: Scalar) -> Scalar:
    """The parameter's value that a sampler's draw means."""
    if isinstance(parameter, FloatRange) and parameter.zero and value < parameter.bounds[0]:  # type: ignore[operator]
        return 0.0
    return value


def _has_zero(parameter: Parameter) -> bool:
    return isinstance(parameter, FloatRange) and parameter.zero


def _distribution(parameter: Parameter, low: float | None = None) -> BaseDistribution:
    if isinstance(parameter, Choice):
        return CategoricalDistribution(list(parameter.choice))  # type: ignore[arg-type]
    if isinstance(parameter, IntRange):
        return IntDistribution(*parameter.bounds, log=parameter.log)
    return FloatDistribution(parameter.bounds[0] if low is None else low, parameter.bounds[1], log=parameter.log)


def _below(parameter: Parameter, part: float) -> float:
    """A value below a range with ``zero``, by ``part`` of the stretch that means 0."""
    assert isinstance(parameter, FloatRange)
    low, high = parameter.bounds
    stretch = part * ZERO_SHARE / (1 - ZERO_SHARE)
    return low * (low / high) ** stretch if parameter.log else low - stretch * (high - low)
