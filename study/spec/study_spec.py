"""One YAML file says everything a study is. Read here into frozen, validated objects; no torch, no Ray.

Errors are one line: file, line, key, the bad value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from study.command import expanded
from study.config import REG_GRADIENT, DataConfig, EvaluationConfig, TrialConfig, fingerprint
from study.errors import InputError
from study.metrics import OBJECTIVES, SCORE, Direction, Metric, protocol_identity
from study.spec.eligible import violations, why_not_eligible
from study.spec.reader import read_yaml
from study.spec.space import Parameter, Point, Scalar, Strict, active, complete, grid, ordered
from study.spec.terms import Budget, Constraint, Fidelity, Resources, Stopping, check_constrained, parse_duration

__all__ = ["Budget", "Fidelity", "Resources", "StudySpec", "TrialConfig", "load_spec", "parse_duration"]

Sampler = Literal["auto", "tpe", "gp", "nsga2", "random", "grid"]

#: The paper's best setting (Torres Figueroa et al. 2024): always tried beside the unregularized network.
PAPER_REG_WEIGHT = 7.5e-3
PAPER_REG_ERROR = "cosine"

_SOURCES = ("shapes", "cifar100")
_SPEC_OWNED = {"epochs", "rungs", "data", "evaluation"}  # said elsewhere in a specification than in the space
_TUNABLE = tuple(f.name for f in dataclasses.fields(TrialConfig) if f.name not in _SPEC_OWNED)


class StudySpec(Strict):
    """A whole study. See ``search_spaces/`` for examples."""

    objectives: dict[str, Direction]
    scalarize: dict[str, float] | None = None
    space: dict[str, Parameter]
    fixed: dict[str, Any] = {}
    known_points: tuple[dict[str, Scalar], ...] = ()
    fidelity: Fidelity
    data: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    resources: Resources = Resources()
    budget: Budget
    sampler: Sampler = "auto"
    stopping: Stopping | None = Stopping()
    constraints: dict[str, Constraint] = {}
    seed: int = Field(default=0, ge=0, lt=2**31, strict=True)

    @field_validator("objectives")
    @classmethod
    def _check_objectives(cls, objectives: dict[str, Direction]) -> dict[str, Direction]:
        if not objectives:
            raise ValueError("at least one objective is needed")
        for name, direction in objectives.items():
            if name not in OBJECTIVES:
                raise ValueError(f"unknown objective {name!r}; choose from {', '.join(OBJECTIVES)}")
            if direction != OBJECTIVES[name].direction:
                raise ValueError(f"{name}: {direction!r} is its worse direction; write {OBJECTIVES[name].direction}")
        return objectives

    @model_validator(mode="after")
    def _check_together(self) -> StudySpec:
        for name in self.scalarize or {}:
            if name not in self.objectives:
                raise InputError(f"{name!r} is not among the objectives {', '.join(self.objectives)}", key="scalarize")
        if self.scalarize is not None and not any(self.scalarize.values()):
            raise InputError("at least one weight must differ from 0", key="scalarize")
        for where, names in (("space", self.space), ("fixed", self.fixed)):
            for name in names:
                if name not in _TUNABLE:
                    raise InputError(f"unknown parameter; known are {', '.join(_TUNABLE)}", key=f"{where}.{name}")
        both = sorted(set(self.space) & set(self.fixed))
        if both:
            raise InputError("stands in 'space' too; keep one of the two", key=f"fixed.{both[0]}")
        for required in ("network", "lr"):
            if required not in self.space and required not in self.fixed:
                raise InputError("missing; name it in 'space' or in 'fixed'", key=f"space.{required}")
        if "reg_gradient" not in self.space:
            self.fixed.setdefault("reg_gradient", REG_GRADIENT)
        ordered(self.space)
        check_constrained(list(self.constraints))
        if self.stopping is not None and "stopping" in self.model_fields_set and not self.fidelity.rungs:
            raise InputError(
                "there is no rung to stop at; name epochs in fidelity.rungs, or write null", key="stopping"
            )
        self._check_values()
        if self.sampler == "grid":
            list(grid(self.space))
        return self

    def _check_values(self) -> None:
        """Every end of every range makes a valid trial, and every known point lies in the space."""
        base = complete(self.space, {})
        for name, parameter in self.space.items():
            for value in parameter.corners():
                self._try({**base, name: value}, name)
        weight = self.space.get("reg_weight")
        if weight is not None and self.sampler != "grid":
            for value in (0.0, PAPER_REG_WEIGHT):
                if not weight.contains(value):
                    raise InputError(
                        f"must contain {value:g}, which is always tried "
                        "(e.g. {float: [1.0e-3, 10], log: true, zero: true})",
                        key="space.reg_weight",
                    )
        for i, point in enumerate(self.known_points):
            for name, value in point.items():
                if name not in self.space:
                    raise InputError("not a parameter of the space", key=f"known_points.{i}.{name}")
                if not self.space[name].contains(value):
                    raise InputError(f"{value!r} lies outside the space", key=f"known_points.{i}.{name}")

    def _try(self, point: Mapping[str, Scalar], varied: str) -> None:
        try:
            self.trial_config(point)
        except InputError as error:
            part = "fixed." if error.key in self.fixed else "space." if error.key == varied else ""
            raise InputError(error.message, key=part + error.key) from None

    def trial_config(self, point: Mapping[str, Scalar]) -> TrialConfig:
        """The trial at one point of the space. Raises :class:`InputError` for a value that cannot be trained."""
        values: dict[str, Any] = {"seed": self.seed, **self.fixed, **point}
        return TrialConfig.from_dict(
            {
                **values,
                "epochs": self.fidelity.max_epochs,
                "rungs": self.fidelity.rungs,
                "data": DataConfig(**_known_keys(DataConfig, self.data, "data")),
                "evaluation": EvaluationConfig(**_known_keys(EvaluationConfig, self.evaluation, "evaluation")),
            }
        )

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> StudySpec:
        """From what study.json and the ledger hold, the dump by alias. Raises :class:`pydantic.ValidationError`."""
        rungs = (values.get("fidelity") or {}).get("rungs")
        kept = {k: v for k, v in values.items() if rungs or k != "stopping"}  # a default that nobody wrote
        return cls.model_validate(kept)

    @property
    def data_config(self) -> DataConfig:
        """The images of every trial."""
        return DataConfig(**self.data)

    @property
    def evaluation_config(self) -> EvaluationConfig:
        """How every trial is scored."""
        return EvaluationConfig(**self.evaluation)

    @property
    def protocol(self) -> str:
        """Identity of the protocol that this version scores its trials under, e.g. ``paper/2``."""
        return protocol_identity(self.evaluation_config.protocol)

    @property
    def targets(self) -> list[Metric]:
        """What the search optimises: the objectives, or their weighted sum alone."""
        return [SCORE] if self.scalarize is not None else [OBJECTIVES[name] for name in self.objectives]

    def target_values(self, report: Mapping[str, float]) -> list[float]:
        """The targets' values from a report with ledger names. Raises KeyError where one is missing."""
        if self.scalarize is None:
            return [report[m.ledger_name] for m in self.targets]
        parts = ((OBJECTIVES[name], weight) for name, weight in self.scalarize.items())
        return [sum(weight * m.sign * report[m.ledger_name] for m, weight in parts)]

    def target_errors(self, report: Mapping[str, float]) -> list[float]:
        """The targets' standard errors from a report with ledger names; 0 where a metric has none."""
        if self.scalarize is None:
            return [report.get(m.error_name, 0.0) for m in self.targets]
        errors = (w * report.get(OBJECTIVES[n].error_name, 0.0) for n, w in self.scalarize.items())
        return [math.hypot(*errors)]

    def violations(self, report: Mapping[str, float]) -> dict[str, float]:
        """By how much a report breaks each constraint: see :func:`study.spec.eligible.violations`."""
        return violations(report, self.constraints)

    def why_not_eligible(self, state: str, values: Sequence[float], report: Mapping[str, float]) -> str:
        """Why a trial with these target values cannot be on a front: see :mod:`study.spec.eligible`."""
        return why_not_eligible(state, values, report, self.targets, self.constraints)

    @property
    def halving(self) -> Stopping | None:
        """How trials are stopped early; None where all are trained to the end."""
        return self.stopping if self.fidelity.rungs and self.sampler != "grid" else None

    def first_points(self) -> list[Point]:
        """What is tried before anything is sampled: lambda = 0, the paper's lambda, then the known points.

        A grid has all its points here.
        """
        if self.sampler == "grid":
            return list(grid(self.space))
        partial: list[Mapping[str, Scalar]] = []
        if "reg_weight" in self.space:
            partial += [
                {"reg_weight": 0.0},
                {"reg_weight": PAPER_REG_WEIGHT, "reg_error": PAPER_REG_ERROR},
            ]
        points: list[Point] = []
        for given in [*partial, *self.known_points]:
            point = complete(self.space, given)
            if point not in points:
                points.append(point)
        return points

    def active(self, name: str, point: Mapping[str, Scalar]) -> bool:
        return active(self.space, name, point)

    def identity(self, data_fingerprint: str) -> dict[str, Any]:
        """All that determines a trial's result: not paths, budget, resources, sampler or known points."""
        data = {k: v for k, v in dataclasses.asdict(self.data_config).items() if k != "source"}
        evaluation = dataclasses.asdict(self.evaluation_config)
        del evaluation["batch_size"]  # changes the speed, not the scores
        dump = self.model_dump(
            mode="json", by_alias=True, include={"objectives", "scalarize", "space", "fixed", "fidelity", "seed"}
        )
        whole = {**dump, "data": {**data, "content": data_fingerprint}, "evaluation": evaluation}
        return json.loads(json.dumps(whole))  # as it is read back from a file: lists, no tuples

    def fingerprint(self, data_fingerprint: str) -> str:
        """SHA-256 (hex) of :meth:`identity`."""
        return fingerprint(self.identity(data_fingerprint))


def _known_keys(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = [f.name for f in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise InputError(f"unknown key; known are {', '.join(known)}", key=f"{where}.{name}")
    return dict(values)


def load_spec(path: str | Path, *, overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """Read and validate a specification; ``overrides`` maps dotted keys to values given on the command line.

    Raises :class:`InputError`: what :func:`read_yaml` refuses, an unknown key, a wrong type, a value not allowed.
    """
    path = Path(path)
    values, root = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError("a specification is a mapping of keys; see search_spaces/quick.yaml", file=path, line=1)
    for key, value in (overrides or {}).items():
        if value is not None:
            *parents, last = key.split(".")
            inner = values
            for parent in parents:
                inner = inner.setdefault(parent, {})
                if not isinstance(inner, dict):
                    raise InputError("must be a mapping of keys", key=parent, file=path)
            inner[last] = value
    _absolute_source(values)
    try:
        return StudySpec.model_validate(values)
    except ValidationError as error:
        raise _refusal(path, root, error) from None


def _absolute_source(values: dict[str, Any]) -> None:
    """Trials run in other folders: a data folder is meant from where the command was typed."""
    data = values.get("data")
    if isinstance(data, dict) and isinstance(data.get("source"), str) and data["source"] not in _SOURCES:
        data["source"] = str(expanded(data["source"], "data.source").absolute())


def _refusal(path: Path, root: yaml.Node | None, error: ValidationError) -> InputError:
    """The first error of a validation: its file, line and key, what is wrong and how many more there are."""
    details = error.errors()
    first = details[0]
    places = list(first["loc"])
    if places[-1:] and places[-1] in ("bool", "int", "float", "str") and len(details) > 1:  # tried as each of these
        places.pop()
    loc = [str(part) for part in places if part not in ("float", "int", "choice") or part == places[-1]]
    loc = [part for i, part in enumerate(loc) if loc[i - 1 : i] != [part]]
    cause = first.get("ctx", {}).get("error")
    message = str(cause) if isinstance(cause, ValueError) else first["msg"]
    if not loc and isinstance(cause, InputError):  # the checks across keys name their key themselves
        loc, message = cause.key.split("."), cause.message
    if first["type"] == "extra_forbidden":
        message = "unknown key; known are " + ", ".join(_siblings(loc))
    elif first["type"] == "missing":
        message = "missing"
    elif not first["type"].startswith(("value_error", "parameter")):
        message = _WANTED.get(first["type"], message[:1].lower() + message[1:])
        message = f"{first['input']!r}: {message}"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return InputError(message + more, key=".".join(loc), file=path, line=_line(root, loc))


#: pydantic's kinds of errors in the words of YAML.
_WANTED = {
    "tuple_type": "a list is needed, such as [a, b]",
    "dict_type": "a mapping is needed, such as {key: value}",
    "model_type": "a mapping is needed, such as {key: value}",
    "too_long": "the list has too many values",
    "too_short": "the list has too few values",
    "bool_type": "a number, a word, true or false is needed",
}
_KINDS: dict[str, type[Strict]] = {
    "fidelity": Fidelity, "resources": Resources, "budget": Budget, "stopping": Stopping,
}  # fmt: skip


def _siblings(loc: list[str]) -> list[str]:
    if len(loc) > 2 and loc[0] == "space":
        return ["float", "int", "choice", "log", "zero", "when"]
    if len(loc) > 2 and loc[0] == "constraints":
        return list(Constraint.model_fields)
    return list(_KINDS.get(loc[0], StudySpec).model_fields if len(loc) > 1 else StudySpec.model_fields)


def _line(root: yaml.Node | None, loc: list[str]) -> int:
    """Line (from 1) of the deepest node on the way ``loc`` that the file has."""
    node, line = root, 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if str(k.value) == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
    return line
