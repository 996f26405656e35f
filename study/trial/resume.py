"""What a trial may continue from: a checkpoint of the same training on the same images."""

from __future__ import annotations

from typing import Any

from study.config import TrialConfig
from study.errors import ArtifactError, InputError
from study.training.checkpoint import Checkpoint


def stored_history(checkpoint: Checkpoint, config: TrialConfig, data_fingerprint: str) -> list[dict[str, float]]:
    """The reports of a checkpoint's epochs, as :class:`study.trial.trial.Trial` saved them.

    Raises :class:`ArtifactError` where it is not a trial's, :class:`InputError` where it is of another configuration or
    other data.
    """
    try:
        stored = TrialConfig.from_dict(checkpoint.header["config"])
        stored_fingerprint, history = checkpoint.header["data_fingerprint"], _reports(checkpoint.header["history"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{checkpoint.path}: not a checkpoint of this program: {error}") from None
    mine, theirs = _comparable(config), _comparable(stored)
    if stored.epochs > config.epochs:
        mine["epochs"], theirs["epochs"] = config.epochs, stored.epochs
    if mine != theirs or stored_fingerprint != data_fingerprint:
        keys = [k for k in mine if mine[k] != theirs.get(k)] or ["data content"]
        raise InputError(
            f"{checkpoint.path}: belongs to another training (they differ in {', '.join(keys)}); choose another folder"
        )
    return history


def _comparable(config: TrialConfig) -> dict[str, Any]:
    """The configuration without what may differ.

    The same data may be in another folder on another machine; their content is compared by fingerprint. A constant
    learning rate does not depend on the number of epochs, so such a training may be continued for more of them.
    """
    values = config.to_dict()
    if config.schedule == "constant":
        del values["epochs"], values["rungs"]
    return {**values, "data": {**values["data"], "source": ""}}


def _reports(history: Any) -> list[dict[str, float]]:
    """The history, if it is reports of epochs 1, 2, ... Raises ValueError and its like for anything else."""
    if not history or [report["epoch"] for report in history] != list(range(1, len(history) + 1)):
        raise ValueError("its history is not one of epochs 1, 2, ...")
    for report in history:
        for name, value in report.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} is {value!r}, not a number")
    return history
