"""What the search hands out: apart from the search itself, since the processes that train need no Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from study.config import TrialConfig


@dataclass(frozen=True)
class Suggestion:
    """A trial to run.

    ``tags``: whose twin or replicate it is. ``compared``: takes part at the rungs. ``kept``: is trained to the end,
    whatever the rungs say.
    """

    number: int
    config: TrialConfig
    tags: Mapping[str, str]
    compared: bool
    kept: bool
