"""What one training is: plain frozen values, checked when made. Needs nothing but the standard library.

A bare GPU host without the tuning stack imports this; ``study.spec`` builds these from a specification. A field is
the one declaration of its parameter: its check, its option of ``study.train`` and docs/parameters.md are made from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, Any

from study.errors import InputError
from study.metrics import METHODS, PROTOCOLS

#: Networks: name -> "module:function". Adding a network is adding one line here; the function takes
#: ``n_classes`` and returns an ``nn.Module`` (see study/networks).
NETWORKS: dict[str, str] = {
    "tiny": "study.networks.small:tiny",
    "small": "study.networks.small:small",
    "resnet18": "study.networks.resnet:resnet18",
    "mobilenet_v2": "study.networks.mobilenet:mobilenet_v2",
    "airbench16": "study.networks.airbench:airbench16",
    "airbench32": "study.networks.airbench:airbench32",
}

#: Error functions E of the regularizer (study/training/regularizer.py).
REG_ERRORS: tuple[str, ...] = ("cosine", "mse", "mae", "histogram")
#: Which input gradient the regularizer aligns (docs/decisions/0027): through batch-norm's batch statistics, with these
#: as constants, or with the running statistics of inference.
REG_GRADIENTS: tuple[str, ...] = ("batch", "constant", "inference")
#: What a specification or a command that names none gets. A record that names none is older, and was ``batch``.
REG_GRADIENT = "constant"
SCHEDULES: tuple[str, ...] = ("cosine", "step", "constant", "linear")
#: How convolutions start (study/networks/initialization.py).
INITIALIZATIONS: tuple[str, ...] = ("default", "dirac")
#: What lies beyond an image's edge in a random crop (study/data/augment.py).
CROP_MODES: tuple[str, ...] = ("zero", "reflect")
AMP_MODES: tuple[str, ...] = ("auto", "none", "bf16", "fp16")
#: How kernels reach the device (study/training/engine.py).
ENGINES: tuple[str, ...] = ("auto", "eager", "fused", "graph")
LABELS: tuple[str, ...] = ("fine", "coarse")

_MAX_SEED = 2**31 - 1


def _one_of(name: str, value: object, allowed: Collection[str]) -> None:
    if value not in tuple(allowed):  # not a look into a mapping: a list or mapping has no hash
        raise InputError(f"unknown value {value!r}; choose one of {', '.join(allowed)}", key=name)


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{value!r} is not a finite number", key=name)
    if value > high or value < low or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise InputError(f"{value} is out of range; it must be in {bracket}{low:g}, {high:g}]", key=name)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{value!r} is not an integer", key=name)
    _number(name, value, low, high)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a training: what it means and the values it takes.

    It stands in the annotation of its field, which says the rest: name, type and default (:func:`_declared` adds them).
    """

    help: str
    low: float = 0
    high: float | str = 1e9  # a text names the field, declared before, that is the limit
    open_low: bool = False  # whether ``low`` itself is refused
    choices: Collection[str] = ()
    with_lambda: bool = False  # means something only with lambda above 0
    example: str = ""  # of a list
    option: str = ""  # of study.train; as the field is called where nothing is said
    name: str = ""  # dotted: ``lr``, ``data.source``
    kind: type = str  # of the value, or of one value of a list: bool, int, float or str
    is_list: bool = False
    optional: bool = False  # whether None is a value
    default: Any = None  # of a record that does not name it; MISSING where the field has none
    new_default: Any = None  # of a new training, where it differs

    @property
    def field(self) -> str:
        return self.name.rpartition(".")[2]


def _declared(owner: type, prefix: str) -> tuple[Parameter, ...]:
    """The parameters among a dataclass's fields, in their order; ``prefix`` begins their names."""
    found = []
    hints = typing.get_type_hints(owner, include_extras=True)
    for f in dataclasses.fields(owner):
        if typing.get_origin(hints[f.name]) is not Annotated:
            continue
        hint, parameter = typing.get_args(hints[f.name])
        parts = typing.get_args(hint) or (hint,)  # of ``int | None`` and ``tuple[int, ...]`` the first is int
        found.append(
            dataclasses.replace(
                parameter,
                name=prefix + f.name,
                option=parameter.option or f.name.replace("_", "-"),
                kind=parts[0],
                is_list=typing.get_origin(hint) is tuple,
                optional=type(None) in parts,
                default=f.default,
                new_default=f.default if parameter.new_default is None else parameter.new_default,
            )
        )
    return tuple(found)


def _check(config: object) -> None:
    """Raises :class:`InputError` for the first value that its declaration does not allow. Lists become tuples."""
    for parameter in _DECLARED[type(config)]:
        value = getattr(config, parameter.field)
        if parameter.is_list:
            if not isinstance(value, (list, tuple)):
                raise InputError(f"{value!r} is not a list, such as {parameter.example}", key=parameter.name)
            object.__setattr__(config, parameter.field, tuple(value))
        high = getattr(config, parameter.high) if isinstance(parameter.high, str) else parameter.high
        for one in value if parameter.is_list else (value,):
            if one is not None or not parameter.optional:
                _check_one(parameter, one, high)


def _check_one(parameter: Parameter, value: Any, high: float) -> None:
    if parameter.choices:
        _one_of(parameter.name, value, tuple(parameter.choices))  # a mapping cannot be looked up in a dict
    elif parameter.kind is int:
        _integer(parameter.name, value, int(parameter.low), int(high))
    elif parameter.kind is float:
        _number(parameter.name, value, parameter.low, high, open_low=parameter.open_low)
    elif parameter.kind is bool:
        if not isinstance(value, bool):
            raise InputError(f"{value!r} is neither true nor false", key=parameter.name)
    elif not isinstance(value, str) or not value:
        raise InputError(f"{value!r} is not a name or a folder", key=parameter.name)


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are split.

    ``train_images`` are the first of the training split after its seeded stratified shuffle; ``validation_images``
    likewise.
    """

    source: Annotated[
        str, Parameter("shapes (embedded), cifar100 (download), or a folder of Parquet/archive files", option="data")
    ] = "shapes"
    labels: Annotated[str, Parameter("CIFAR-100's 100 classes, or its 20 superclasses", choices=LABELS)] = "fine"
    validation_fraction: Annotated[
        float, Parameter("share of the training images that is kept for validation", high=0.5, open_low=True)
    ] = 0.1
    split_seed: Annotated[int, Parameter("of the split into training and validation images", high=_MAX_SEED)] = 0
    train_images: Annotated[int | None, Parameter("use only so many training images (none: all)", low=1)] = None
    validation_images: Annotated[int | None, Parameter("use only so many validation images (none: all)", low=1)] = None

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class EvaluationConfig:
    """How faithfulness is measured.

    ``images`` are the first so many of the validation split. ``masking_images`` bounds the scores that mask images, the
    paper's five metrics among them, and those that delete halves of the cells; they take most of the time. Where the
    split has fewer than twice as many as ``calibration_images``, half of it is kept for calibration.
    """

    methods: Annotated[tuple[str, ...], Parameter("saliency methods", choices=METHODS, example="[grad_cam]")] = (
        "grad_cam",
        "grad_cam_plus_plus",
    )
    protocol: Annotated[str, Parameter("faithfulness protocol", choices=PROTOCOLS)] = "paper"
    images: Annotated[
        int | None,
        Parameter(
            "validation images on which faithfulness is measured (none: all that calibration leaves)",
            low=2,
            option="evaluation-images",
        ),
    ] = 500
    masking_images: Annotated[
        int | None, Parameter("of these, images on which scores that mask images are measured (none: all)", low=2)
    ] = None
    shifts: Annotated[
        int, Parameter("moved copies of a map over which its masking excess is measured", low=1, high=15)
    ] = 1
    calibration_images: Annotated[int, Parameter("last validation images, to fit the temperature on", low=1)] = 500
    batch_size: Annotated[
        int, Parameter("images that are scored at once", low=1, high=10**6, option="evaluation-batch-size")
    ] = 100
    random_seed: Annotated[int, Parameter("of what is random in scoring", high=_MAX_SEED, option="evaluation-seed")] = 0

    def __post_init__(self) -> None:
        _check(self)
        if not self.methods:
            raise InputError("at least one saliency method is needed", key="evaluation.methods")
        if len(set(self.methods)) != len(self.methods):
            raise InputError(f"{', '.join(self.methods)} names a method twice", key="evaluation.methods")


@dataclass(frozen=True)
class TrialConfig:
    """One training and its scoring: everything that determines the result but the code and the data's content.

    The loss is L = L_C + lambda L_R (Torres Figueroa et al. 2024). Every ``reg_interval``-th step is regularized, with
    weight ``reg_interval * reg_weight`` (lazy regularization, Karras et al. 2020). At ``reg_weight`` 0 what describes
    the regularizer means nothing: ``reg_error`` is stored as None, the others as their defaults.
    """

    network: Annotated[str, Parameter("architecture", choices=NETWORKS)]
    epochs: Annotated[int, Parameter("passes over the training images", low=1, high=100_000)]
    lr: Annotated[float, Parameter("peak learning rate (SGD with Nesterov momentum)", high=1000, open_low=True)]
    reg_weight: Annotated[float, Parameter("lambda, weight of the regularizer; 0 is plain training", high=1e6)] = 0.0
    reg_error: Annotated[str | None, Parameter("error function", choices=REG_ERRORS, with_lambda=True)] = "cosine"
    reg_gradient: Annotated[
        str,
        Parameter(
            "input gradient that is regularized, by what batch-norm is in it",
            choices=REG_GRADIENTS,
            new_default=REG_GRADIENT,
            with_lambda=True,
        ),
    ] = "batch"
    reg_interval: Annotated[
        int,
        Parameter(
            "regularize every so many steps, with lambda as many times as large", low=1, high=1000, with_lambda=True
        ),
    ] = 1
    reg_warmup_epochs: Annotated[
        float, Parameter("epochs over which lambda rises linearly to its value", high=100_000, with_lambda=True)
    ] = 0.0
    batch_size: Annotated[int, Parameter("images per step", low=1, high=1_000_000)] = 128
    # Batch-norm sees one part at a time.
    accumulate: Annotated[
        int, Parameter("parts in which a step's images are worked on, to save memory", low=1, high="batch_size")
    ] = 1
    momentum: Annotated[float, Parameter("Nesterov momentum", high=0.9999)] = 0.9
    weight_decay: Annotated[float, Parameter("L2 penalty", high=10)] = 5e-4
    clip_norm: Annotated[float | None, Parameter("scale a longer gradient down to this norm", open_low=True)] = None
    norm_lr_multiple: Annotated[
        float, Parameter("rate of batch-norm's scale and shift, as a multiple", high=1000, open_low=True)
    ] = 1.0
    initialization: Annotated[
        str, Parameter("of convolutions (dirac: the identity, as far as they are square)", choices=INITIALIZATIONS)
    ] = "default"
    label_smoothing: Annotated[float, Parameter("smoothing of the targets in L_C", high=0.99)] = 0.0
    schedule: Annotated[str, Parameter("learning rate after warm-up", choices=SCHEDULES)] = "cosine"
    milestones: Annotated[
        tuple[float, ...],
        Parameter("step schedule: fractions of the epochs at which the rate falls", high=1, example="[0.3, 0.6, 0.8]"),
    ] = (0.3, 0.6, 0.8)
    gamma: Annotated[float, Parameter("step schedule: factor of the rate at a milestone", high=1, open_low=True)] = 0.2
    warmup_epochs: Annotated[float, Parameter("epochs of linear warm-up", high=100_000)] = 1.0
    crop_padding: Annotated[int, Parameter("augmentation: pixels around a random crop", high=16)] = 4
    crop_mode: Annotated[str, Parameter("what lies in the padding", choices=CROP_MODES)] = "zero"
    flip: Annotated[bool, Parameter("augmentation: mirror half of the images")] = True
    rotation: Annotated[float, Parameter("augmentation: rotation up to so many degrees", high=180)] = 0.0
    amp: Annotated[str, Parameter("mixed precision (auto: bf16 on a GPU, else none)", choices=AMP_MODES)] = "auto"
    # It changes results by rounding alone.
    engine: Annotated[str, Parameter("how kernels reach the device (auto: graph on a GPU)", choices=ENGINES)] = "auto"
    rungs: Annotated[
        tuple[int, ...],
        Parameter("epochs after which it is scored too, besides the last", low=1, high="epochs", example="[4, 8]"),
    ] = ()
    seed: Annotated[int, Parameter("of the initial weights, the order and the augmentation", high=_MAX_SEED)] = 0
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.reg_weight == 0:
            for name in WITH_LAMBDA:
                object.__setattr__(self, name, DEFAULTS.get(name))
        elif self.reg_error is None:
            _one_of("reg_error", None, REG_ERRORS)
        _check(self)
        object.__setattr__(self, "rungs", tuple(sorted(set(self.rungs))))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` gives the same object back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrialConfig:
        """Raises :class:`InputError` for an unknown key or a bad value."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"unknown training parameter; known are {', '.join(sorted(known))}", key=unknown[0])
        values = dict(values)
        for name, kind in (("data", DataConfig), ("evaluation", EvaluationConfig)):
            if isinstance(values.get(name), dict):
                values[name] = kind(**values[name])
        return cls(**values)


_DECLARED: dict[type, tuple[Parameter, ...]] = {
    TrialConfig: _declared(TrialConfig, ""),
    DataConfig: _declared(DataConfig, "data."),
    EvaluationConfig: _declared(EvaluationConfig, "evaluation."),
}
#: Every parameter by its dotted name, in the order of declaration.
PARAMETERS: dict[str, Parameter] = {p.name: p for parameters in _DECLARED.values() for p in parameters}
#: Parameters that mean something only with lambda above 0.
WITH_LAMBDA: tuple[str, ...] = tuple(name for name, parameter in PARAMETERS.items() if parameter.with_lambda)
#: Parameters that have a default, by dotted name. A training recorded before a parameter existed ran with the default.
#: ``reg_error`` has always been recorded, and without lambda it is None, not its default.
DEFAULTS: dict[str, Any] = {
    name: list(parameter.default) if parameter.is_list else parameter.default
    for name, parameter in PARAMETERS.items()
    if parameter.default is not dataclasses.MISSING and name != "reg_error"
}


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of a JSON value in canonical form: independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
