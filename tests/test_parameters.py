"""Parameters of a training: each declared once, checked by its declaration, and within reach of ``study.train``."""

from __future__ import annotations

import dataclasses
import math
import shlex
from typing import Any

import pytest

from study.config import PARAMETERS, WITH_LAMBDA, DataConfig, EvaluationConfig, Parameter, TrialConfig
from study.errors import InputError
from study.train import command_line, config_from, parser


def config(values: dict[str, Any]) -> TrialConfig:
    """By dotted name; lambda is above 0, or the regularizer's parameters would mean nothing."""
    nested: dict[str, Any] = {
        "network": "tiny",
        "epochs": 8,
        "lr": 0.1,
        "reg_weight": 1.0,
        "data": {},
        "evaluation": {},
    }
    for name, value in values.items():
        owner, _, field = name.rpartition(".")
        (nested[owner] if owner else nested)[field] = value
    return TrialConfig.from_dict(nested)


def read(made: TrialConfig, name: str) -> Any:
    value: Any = made
    for part in name.split("."):
        value = getattr(value, part)
    return value


def other_value(parameter: Parameter) -> Any:
    """An allowed value that is not the default."""
    value: Any
    if parameter.choices:
        value = list(parameter.choices)[-1]
    elif parameter.kind is bool:
        value = not parameter.default
    elif parameter.kind is str:
        value = "some/folder"
    else:
        high = parameter.high if isinstance(parameter.high, (int, float)) else 3
        value = parameter.kind(min(high, parameter.low + 2) if parameter.kind is int else high / 2)
    return (value,) if parameter.is_list else value


def test_every_field_is_a_parameter_with_a_name_for_the_command_line() -> None:
    nested = {"data": DataConfig, "evaluation": EvaluationConfig}
    fields = [f.name for f in dataclasses.fields(TrialConfig) if f.name not in nested]
    fields += [f"{name}.{f.name}" for name, owner in nested.items() for f in dataclasses.fields(owner)]
    assert list(PARAMETERS) == fields and all(p.help for p in PARAMETERS.values())
    assert len({p.option for p in PARAMETERS.values()}) == len(PARAMETERS)


@pytest.mark.parametrize("name", [n for n, p in PARAMETERS.items() if p.kind in (int, float) and not p.choices])
def test_a_range_ends_where_it_is_declared(name: str) -> None:
    parameter = PARAMETERS[name]
    high = parameter.high if isinstance(parameter.high, (int, float)) else read(config({}), parameter.high)
    low = parameter.kind(math.nextafter(parameter.low, math.inf) if parameter.open_low else parameter.low)
    ends, beyond = (low, parameter.kind(high)), (parameter.kind(parameter.low) - (not parameter.open_low), high + 1)
    for value in ends:
        assert read(config({name: [value] if parameter.is_list else value}), name) in (value, (value,))
    for value in (*beyond, True, "3", math.nan, *([None] if not parameter.optional else [])):
        with pytest.raises(InputError, match=f"^{name}: "):
            config({name: [value] if parameter.is_list else value})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("network", "resnet9000", "unknown value 'resnet9000'; choose one of tiny, small"),
        ("flip", 1, "1 is neither true nor false"),
        ("milestones", 5, "5 is not a list, such as [0.3, 0.6, 0.8]"),
        ("rungs", 4, "4 is not a list"),
        ("rungs", [9], "9 is out of range; it must be in [1, 8]"),
        ("accumulate", 129, "it must be in [1, 128]"),
        ("reg_error", None, "unknown value None"),
        ("data.source", "", "'' is not a name or a folder"),
        ("evaluation.methods", [], "at least one"),
        ("evaluation.methods", ["grad_cam", "grad_cam"], "names a method twice"),
    ],
)
def test_a_refusal_names_parameter_and_value(name: str, value: Any, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        config({name: value})
    assert str(refusal.value).startswith(f"{name}: ") and words in str(refusal.value)


def test_without_lambda_the_regularizer_is_not_described() -> None:
    described = {"reg_error": "mse", "reg_gradient": "inference", "reg_interval": 2, "reg_warmup_epochs": 1.0}
    assert described.keys() == set(WITH_LAMBDA)
    assert config({**described, "reg_weight": 0}) == config({"reg_weight": 0})
    assert [read(config({**described, "reg_weight": 0}), name) for name in described] == [None, "batch", 1, 0.0]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_command_line_says_every_parameter(name: str) -> None:
    parameter, value = PARAMETERS[name], other_value(PARAMETERS[name])
    command = command_line({"reg_weight": 1.0, name: value})
    assert f"--{parameter.option} " in command or command.endswith(f"--no-{parameter.option}")
    assert read(config_from(parser().parse_args(shlex.split(command)[3:])), name) == value


def test_the_command_line_says_none_and_an_empty_list() -> None:
    values = {"evaluation.images": None, "milestones": ()}
    made = config_from(parser().parse_args(shlex.split(command_line(values))[3:]))
    assert made.evaluation.images is None and made.milestones == ()
    assert command_line({"clip_norm": None, "rungs": []}) == "python -m study.train"


def test_a_new_training_gets_todays_gradient_and_an_old_record_its_own() -> None:
    assert config_from(parser().parse_args(["--reg-weight", "1"])).reg_gradient == "constant"
    assert TrialConfig("tiny", 8, 0.1, reg_weight=1.0).reg_gradient == "batch"
