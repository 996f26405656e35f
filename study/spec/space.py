"""The searched space: ranges, choices, conditions between them, and the points tried first."""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from study.errors import InputError

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"^\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*$")

Scalar = bool | int | float | str
Point = dict[str, Scalar]


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Condition(Strict):
    """``parameter OP value``: the parameter that carries it exists only where this holds."""

    parameter: str
    op: Literal[">=", "<=", "==", "!=", ">", "<"]
    value: Scalar

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read e.g. ``reg_weight > 0`` or ``network == tiny``. Raises ValueError."""
        match = _CONDITION.match(text)
        if not match:
            raise ValueError(f"{text!r} is not a condition; write e.g. 'reg_weight > 0' or 'network == tiny'")
        name, op, raw = match.groups()
        value: Scalar
        try:
            value = float(raw)
        except ValueError:
            value = {"true": True, "false": False}.get(raw.lower(), raw.strip("'\""))
            if op not in ("==", "!="):
                raise ValueError(f"{text!r} orders a word; use == or !=") from None
        return cls(parameter=name, op=op, value=value)  # type: ignore[arg-type]

    def holds(self, value: Scalar) -> bool:
        return _OPERATORS[self.op](value, self.value)


class _Parameter(Strict):
    when: Condition | None = None

    @field_validator("when", mode="before")
    @classmethod
    def _read_condition(cls, value: Any) -> Any:
        return Condition.parse(value) if isinstance(value, str) else value


class FloatRange(_Parameter):
    """``{float: [low, high], log: bool, zero: bool}``; ``zero`` adds the single value 0 beside the range."""

    bounds: tuple[float, float] = Field(alias="float")
    log: bool = False
    zero: bool = False

    @model_validator(mode="after")
    def _check(self) -> FloatRange:
        _check_bounds(*self.bounds, log=self.log)
        if self.zero and self.bounds[0] <= 0 <= self.bounds[1]:
            raise ValueError("zero: 0 lies inside the range already; remove 'zero' or raise the lower bound")
        return self

    def contains(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return self.bounds[0] <= value <= self.bounds[1] or (self.zero and value == 0)

    def center(self) -> float:
        low, high = self.bounds
        return float(f"{math.sqrt(low * high) if self.log else (low + high) / 2:.3g}")

    def corners(self) -> list[Scalar]:
        return [*self.bounds, *([0.0] if self.zero else [])]


class IntRange(_Parameter):
    """``{int: [low, high], log: bool}``, both ends included."""

    bounds: tuple[int, int] = Field(alias="int")
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> IntRange:
        _check_bounds(*self.bounds, log=self.log)
        return self

    def contains(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.bounds[0] <= value <= self.bounds[1]

    def center(self) -> int:
        low, high = self.bounds
        return round(math.sqrt(low * high)) if self.log else (low + high) // 2

    def corners(self) -> list[Scalar]:
        return list(self.bounds)


class Choice(_Parameter):
    """``{choice: [a, b, ...]}``."""

    choice: tuple[Scalar, ...] = Field(min_length=1)

    @field_validator("choice")
    @classmethod
    def _distinct(cls, values: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
        for i, value in enumerate(values):
            if value in values[:i]:
                raise ValueError(f"{value!r} is listed twice")
        return values

    def contains(self, value: Any) -> bool:
        return value in self.choice

    def center(self) -> Scalar:
        return self.choice[0]

    def corners(self) -> list[Scalar]:
        return list(self.choice)


def _check_bounds(low: float, high: float, *, log: bool) -> None:
    if low > high:
        raise ValueError(f"the bounds [{low:g}, {high:g}] are reversed; write [{high:g}, {low:g}]")
    if low == high:
        raise ValueError(f"the bounds [{low:g}, {high:g}] are equal; move the value to 'fixed'")
    if log and low <= 0:
        raise ValueError(
            f"a log scale cannot reach {low:g}; raise the lower bound above 0 (and add 'zero: true' for 0)"
        )


def _kind(value: Any) -> str | None:
    if isinstance(value, BaseModel):
        return {FloatRange: "float", IntRange: "int", Choice: "choice"}.get(type(value))
    kinds = [k for k in ("float", "int", "choice") if isinstance(value, Mapping) and k in value]
    return kinds[0] if len(kinds) == 1 else None


Parameter = Annotated[
    Annotated[FloatRange, Tag("float")] | Annotated[IntRange, Tag("int")] | Annotated[Choice, Tag("choice")],
    Discriminator(
        _kind,
        custom_error_type="parameter",
        custom_error_message="exactly one of 'float: [low, high]', 'int: [low, high]' and 'choice: [...]' is needed",
    ),
]


def ordered(space: Mapping[str, Parameter]) -> list[str]:
    """Parameter names with every condition's parameter before its dependants.

    Raises :class:`InputError` for a condition on an unknown parameter, in a circle, or that orders words.
    """
    order: list[str] = []
    pending = list(space)
    while pending:
        ready = [n for n in pending if (c := space[n].when) is None or c.parameter in order]
        if not ready:
            name = pending[0]
            condition = space[name].when
            assert condition is not None
            if condition.parameter not in space:
                raise InputError(
                    f"a condition on {condition.parameter!r}, which is not in the space; it has {', '.join(space)}",
                    key=f"space.{name}.when",
                )
            raise InputError(f"the conditions of {', '.join(pending)} form a circle", key=f"space.{name}.when")
        for name in ready:
            condition = space[name].when
            if condition is None or condition.op in ("==", "!="):
                continue
            if any(isinstance(value, str) for value in space[condition.parameter].corners()):
                raise InputError(
                    f"{condition.parameter} has words, which {condition.op} cannot order; use == or !=",
                    key=f"space.{name}.when",
                )
        order += ready
        pending = [n for n in pending if n not in ready]
    return order


def active(space: Mapping[str, Parameter], name: str, point: Mapping[str, Scalar]) -> bool:
    """Whether ``name`` exists at ``point``, in which its condition's parameter is already decided."""
    condition = space[name].when
    if condition is None:
        return True
    return condition.parameter in point and condition.holds(point[condition.parameter])


def complete(space: Mapping[str, Parameter], partial: Mapping[str, Scalar]) -> Point:
    """``partial`` with every missing active parameter at the middle of its range and no inactive one."""
    point: Point = {}
    for name in ordered(space):
        if active(space, name, point):
            point[name] = partial.get(name, space[name].center())
    return point


def grid(space: Mapping[str, Parameter]) -> Iterator[Point]:
    """Every distinct point of a space of choices, in the order written. Raises :class:`InputError` for a range."""
    for name, parameter in space.items():
        if not isinstance(parameter, Choice):
            raise InputError("a grid needs 'choice: [...]', not a range", key=f"space.{name}")
    seen: list[Point] = []
    for values in itertools.product(*(space[name].corners() for name in space)):
        point = complete(space, dict(zip(space, values, strict=True)))
        if point not in seen:
            seen.append(point)
            yield point
