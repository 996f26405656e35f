"""How fast networks train and score on one kind of machine: measured once, kept in a file, read wherever one plans."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.config import TrialConfig
from study.errors import InputError
from study.storage.atomic import write_atomically

#: What of a training's configuration changes its speed so much that each value is timed.
SPEED_KEYS = ("network", "batch_size", "accumulate", "amp", "engine")
_FORMAT = "study-profile/2"


@dataclass(frozen=True)
class Speed:
    """One network at one batch size: seconds and bytes.

    ``plain`` and ``regularized``: of a training step, augmentation and optimizer included. ``classified``, ``scored``
    and ``masked``: of one validation image, for accuracy, for faithfulness, and what the scores that mask it add to the
    latter. ``saved``: of writing a checkpoint of ``checkpoint_bytes``. The table of per-image scores takes
    ``table_bytes`` and ``row_bytes`` an image.
    """

    network: str
    batch_size: int
    accumulate: int
    amp: str
    engine: str
    plain: float
    regularized: float
    classified: float
    scored: float
    masked: float
    saved: float
    checkpoint_bytes: float
    model_bytes: float
    table_bytes: float
    row_bytes: float

    def step(self, config: TrialConfig) -> float:
        """Seconds of a step of ``config``: the mean over steps with and without the regularizer."""
        if config.reg_weight == 0:
            return self.plain
        return self.plain + (self.regularized - self.plain) / config.reg_interval


@dataclass(frozen=True)
class Profile:
    """Speeds of one machine, taken while ``at_once`` of them ran on it; it has room for ``slots`` trials.

    ``start``: seconds in which a fresh process loads the stack. ``spread``: standard deviation of the logarithm of
    timings that were repeated in the course of the measurement. ``seconds``: how long the measurement took. ``scaled``:
    networks too slow to be timed at their batch size, timed on a few images and multiplied.
    """

    device: str
    at_once: int
    slots: int
    start: float
    spread: float
    seconds: float
    stack: str
    scaled: tuple[str, ...]
    speeds: tuple[Speed, ...]

    def speed(self, config: TrialConfig) -> Speed:
        """Of ``config``'s network; between two timed batch sizes on the straight line through both.

        Raises :class:`InputError` where the profile knows nothing of such a training.
        """
        same = [s for s in self.speeds if (s.network, s.amp, s.engine) == (config.network, config.amp, config.engine)]
        if not same:
            known = sorted({f"{s.network} (amp {s.amp}, engine {s.engine})" for s in self.speeds})
            raise InputError(
                f"profile: has no timing of {config.network} with amp {config.amp} and engine {config.engine}, only of "
                f"{', '.join(known) or 'nothing'}; leave --profile out to time here, or record one on that machine"
            )
        nearest = min(abs(s.accumulate - config.accumulate) for s in same)
        same = sorted((s for s in same if abs(s.accumulate - config.accumulate) == nearest), key=lambda s: s.batch_size)
        low = max((s for s in same if s.batch_size <= config.batch_size), key=lambda s: s.batch_size, default=same[0])
        high = min((s for s in same if s.batch_size >= config.batch_size), key=lambda s: s.batch_size, default=same[-1])
        if low.batch_size == high.batch_size:
            factor = config.batch_size / low.batch_size
            return dataclasses.replace(low, plain=low.plain * factor, regularized=low.regularized * factor)
        part = (config.batch_size - low.batch_size) / (high.batch_size - low.batch_size)
        return dataclasses.replace(
            low,
            plain=low.plain + part * (high.plain - low.plain),
            regularized=low.regularized + part * (high.regularized - low.regularized),
        )

    def write(self, file: Path) -> None:
        """Atomically. Raises :class:`StorageError` where the file cannot be written."""
        write_atomically(file, (json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n").encode())

    @classmethod
    def read(cls, file: Path) -> Profile:
        """Raises :class:`InputError` for a file that is missing, damaged or something else."""
        try:
            values = json.loads(file.read_text())
        except OSError as error:
            raise InputError(
                f"--profile {file}: cannot be read: {error.strerror or error}; `--plan --save-profile FILE` records one"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"--profile {file}: not JSON: {error}") from None
        if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
            raise InputError(f"--profile {file}: not a profile; `--plan --save-profile FILE` records one")
        try:
            speeds = tuple(_checked(Speed, s) for s in values.pop("speeds"))
            scaled = tuple(str(name) for name in values.pop("scaled"))
            return _checked(cls, values, speeds=speeds, scaled=scaled)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"--profile {file}: damaged: {error}") from None


def _checked(kind: Any, values: dict[str, Any], **more: Any) -> Any:
    """A dataclass from JSON whose numbers are positive and finite. Raises TypeError and ValueError."""
    if not isinstance(values, dict):
        raise TypeError(f"{values!r} is not a mapping")
    for field in dataclasses.fields(kind):
        value = values.get(field.name)
        if field.type in ("float", "int"):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{field.name}: {value!r} is not a number that a measurement gives")
        elif field.type == "str" and not isinstance(value, str):
            raise ValueError(f"{field.name}: {value!r} is not a text")
    return kind(**values, **more)
