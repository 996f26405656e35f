"""Made profiles: speeds that one can multiply in one's head."""

from __future__ import annotations

from typing import Any

from study.planning.speeds import Profile, Speed


def speed(network: str = "tiny", **changes: Any) -> Speed:
    """A plain step of 10 ms, a regularized one of 20, 1 ms to classify an image and 3 to score it,
    2 more where it is masked; files of 1 kB."""
    values: dict[str, Any] = {
        "network": network, "batch_size": 32, "accumulate": 1, "amp": "auto", "engine": "auto",
        "plain": 0.01, "regularized": 0.02, "classified": 0.001, "scored": 0.003,
        "masked": 0.002, "saved": 0.0,
        "checkpoint_bytes": 1000.0, "model_bytes": 1000.0, "table_bytes": 0.0, "row_bytes": 0.0,
    }  # fmt: skip
    return Speed(**{**values, **changes})


def profile(*speeds: Speed, **changes: Any) -> Profile:
    """A machine that starts at once and never wavers, with room for two trials."""
    values: dict[str, Any] = {
        "device": "made", "at_once": 2, "slots": 2, "start": 0.0, "spread": 0.0, "seconds": 1.0, "stack": "torch",
        "scaled": (),
    }  # fmt: skip
    return Profile(**{**values, **changes}, speeds=speeds or (speed(), speed("small", plain=0.04, regularized=0.08)))
