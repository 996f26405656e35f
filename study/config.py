"""What one training is: plain frozen values, checked when made. Needs nothing but the standard library.

A bare GPU host without the tuning stack imports this; ``study.spec`` builds these from a specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

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
#: Parameters that mean something only with lambda above 0.
WITH_LAMBDA: tuple[str, ...] = ("reg_error", "reg_interval", "reg_warmup_epochs", "reg_gradient")
SCHEDULES: tuple[str, ...] = ("cosine", "step", "constant", "linear")
#: How convolutions start (study/networks/initialization.py).
INITIALIZATIONS: tuple[str, ...] = ("default", "dirac")
#: What lies beyond an image's edge in a random crop (study/data/augment.py).
CROP_MODES: tuple[str, ...] = ("zero", "reflect")
AMP_MODES: tuple[str, ...] = ("auto", "none", "bf16", "fp16")
#: How kernels reach the device (study/training/engine.py).
ENGINES: tuple[str, ...] = ("auto", "eager", "fused", "graph")
LABELS: tuple[str, ...] = ("fine", "coarse")


def _one_of(name: str, value: object, allowed: Collection[str]) -> None:
    if value not in allowed:
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
class DataConfig:
    """Which images, and how they are split.

    ``source`` is ``shapes`` (embedded), ``cifar100`` (download), a folder of Parquet files or a
    ``cifar-100-python`` folder. ``train_images`` limits the training split to its first n images after the
    seeded stratified shuffle (None: all); likewise ``validation_images``.
    """

    source: str = "shapes"
    labels: str = "fine"
    validation_fraction: float = 0.1
    split_seed: int = 0
    train_images: int | None = None
    validation_images: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise InputError(f"{self.source!r} is not a name or a folder", key="data.source")
        _one_of("data.labels", self.labels, LABELS)
        _number("data.validation_fraction", self.validation_fraction, 0, 0.5, open_low=True)
        _integer("data.split_seed", self.split_seed, 0, 2**31 - 1)
        for name in ("train_images", "validation_images"):
            if getattr(self, name) is not None:
                _integer(f"data.{name}", getattr(self, name), 1, 10**9)


@dataclass(frozen=True)
class EvaluationConfig:
    """How faithfulness is measured.

    ``images``: the first so many validation images (None: all that calibration leaves). ``masking_images``: on how many
    of them the scores that mask images are measured, the paper's five metrics among them, and those that delete halves
    of the cells (None: on all); they take most of the time. ``shifts``: how many moved copies a map's masking excess is
    measured over. ``calibration_images``: the last so many validation images are reserved for fitting the temperature
    (half of them, where there are fewer than twice as many).
    """

    methods: tuple[str, ...] = ("grad_cam", "grad_cam_plus_plus")
    protocol: str = "paper"
    images: int | None = 500
    batch_size: int = 100
    random_seed: int = 0
    masking_images: int | None = None
    shifts: int = 1
    calibration_images: int = 500

    def __post_init__(self) -> None:
        if not isinstance(self.methods, (list, tuple)):
            raise InputError(f"{self.methods!r} is not a list, such as [grad_cam]", key="evaluation.methods")
        object.__setattr__(self, "methods", tuple(self.methods))
        if not self.methods:
            raise InputError("at least one saliency method is needed", key="evaluation.methods")
        for method in self.methods:
            _one_of("evaluation.methods", method, tuple(METHODS))
        if len(set(self.methods)) != len(self.methods):
            raise InputError(f"{', '.join(self.methods)} names a method twice", key="evaluation.methods")
        _one_of("evaluation.protocol", self.protocol, PROTOCOLS)
        for name in ("images", "masking_images"):
            if getattr(self, name) is not None:
                _integer(f"evaluation.{name}", getattr(self, name), 2, 10**9)
        _integer("evaluation.shifts", self.shifts, 1, 15)
        _integer("evaluation.calibration_images", self.calibration_images, 1, 10**9)
        _integer("evaluation.batch_size", self.batch_size, 1, 10**6)
        _integer("evaluation.random_seed", self.random_seed, 0, 2**31 - 1)


@dataclass(frozen=True)
class TrialConfig:
    """One training and its scoring: everything that determines the result but the code and the data's content.

    ``reg_weight`` is lambda in L = L_C + lambda L_R (Torres Figueroa et al. 2024) and ``reg_error`` the error
    function E; every ``reg_interval``-th step is regularized, with weight ``reg_interval * reg_weight`` (lazy
    regularization, Karras et al. 2020). At ``reg_weight`` 0 neither means anything; they are stored as None and 1.
    ``batch_size`` images make a step, in ``accumulate`` parts one after the other (batch-norm sees one part).
    ``milestones`` are fractions of ``epochs`` at which the step schedule multiplies the rate by ``gamma``. ``engine``
    is how kernels reach the device; it changes results by rounding. ``rungs`` are epochs after which the trial is
    scored, besides the last. ``norm_lr_multiple``: scale and shift of normalization layers train at so many times the
    rate. ``initialization``: ``dirac`` starts every convolution as the identity as far as it is square. ``crop_mode``:
    what lies in ``crop_padding``. Over ``reg_warmup_epochs`` lambda rises linearly to ``reg_weight``.
    ``reg_gradient``: which input gradient is regularized. At ``reg_weight`` 0 these two are stored as 0 and ``batch``.
    """

    network: str
    epochs: int
    lr: float
    reg_weight: float = 0.0
    reg_error: str | None = "cosine"
    reg_interval: int = 1
    batch_size: int = 128
    accumulate: int = 1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    gamma: float = 0.2
    warmup_epochs: float = 1.0
    clip_norm: float | None = None
    crop_padding: int = 4
    flip: bool = True
    rotation: float = 0.0
    amp: str = "auto"
    engine: str = "auto"
    rungs: tuple[int, ...] = ()
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    norm_lr_multiple: float = 1.0
    initialization: str = "default"
    crop_mode: str = "zero"
    reg_warmup_epochs: float = 0.0
    reg_gradient: str = "batch"

    def __post_init__(self) -> None:
        _one_of("network", self.network, NETWORKS)
        _integer("epochs", self.epochs, 1, 100_000)
        _number("lr", self.lr, 0, 1000, open_low=True)
        _number("reg_weight", self.reg_weight, 0, 1e6)
        if self.reg_weight == 0:
            object.__setattr__(self, "reg_error", None)
            object.__setattr__(self, "reg_interval", 1)
            object.__setattr__(self, "reg_warmup_epochs", 0.0)
            object.__setattr__(self, "reg_gradient", "batch")
        else:
            _one_of("reg_error", self.reg_error, REG_ERRORS)
        _integer("reg_interval", self.reg_interval, 1, 1_000)
        _integer("batch_size", self.batch_size, 1, 1_000_000)
        _integer("accumulate", self.accumulate, 1, self.batch_size)
        _number("momentum", self.momentum, 0, 0.9999)
        _number("weight_decay", self.weight_decay, 0, 10)
        _number("label_smoothing", self.label_smoothing, 0, 0.99)
        _one_of("schedule", self.schedule, SCHEDULES)
        if not isinstance(self.milestones, (list, tuple)):
            raise InputError(f"{self.milestones!r} is not a list, such as [0.3, 0.6, 0.8]", key="milestones")
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for milestone in self.milestones:
            _number("milestones", milestone, 0, 1)
        _number("gamma", self.gamma, 0, 1, open_low=True)
        _number("warmup_epochs", self.warmup_epochs, 0, 100_000)
        if self.clip_norm is not None:
            _number("clip_norm", self.clip_norm, 0, 1e9, open_low=True)
        _integer("crop_padding", self.crop_padding, 0, 16)
        if not isinstance(self.flip, bool):
            raise InputError(f"{self.flip!r} is neither true nor false", key="flip")
        _number("rotation", self.rotation, 0, 180)
        _one_of("amp", self.amp, AMP_MODES)
        _one_of("engine", self.engine, ENGINES)
        object.__setattr__(self, "rungs", tuple(sorted(set(self.rungs))))
        for rung in self.rungs:
            _integer("rungs", rung, 1, self.epochs)
        _integer("seed", self.seed, 0, 2**31 - 1)
        _number("norm_lr_multiple", self.norm_lr_multiple, 0, 1000, open_low=True)
        _one_of("initialization", self.initialization, INITIALIZATIONS)
        _one_of("crop_mode", self.crop_mode, CROP_MODES)
        _number("reg_warmup_epochs", self.reg_warmup_epochs, 0, 100_000)
        _one_of("reg_gradient", self.reg_gradient, REG_GRADIENTS)

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

    def fingerprint(self) -> str:
        """SHA-256 of all that determines the result, as hex."""
        return fingerprint(self.to_dict())


def _defaults(kind: type, prefix: str = "") -> dict[str, Any]:
    return {
        prefix + f.name: list(f.default) if isinstance(f.default, tuple) else f.default
        for f in dataclasses.fields(kind)
        if f.default is not dataclasses.MISSING and f.name != "reg_error"
    }


#: Parameters that have a default, by dotted name. A training recorded before a parameter existed ran with the default.
#: ``reg_error`` has always been recorded, and without lambda it is None, not its default.
DEFAULTS: dict[str, Any] = {
    **_defaults(TrialConfig),
    **_defaults(DataConfig, "data."),
    **_defaults(EvaluationConfig, "evaluation."),
}


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of a JSON value in canonical form: independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
