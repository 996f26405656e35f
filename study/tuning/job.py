"""What crosses Ray with a trial: plain values that every machine can unpickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study.ledger import DataInput, Ledger, TrialWriter
from study.search.suggestion import Suggestion
from study.storage.storage import Storage, trial_folder

_KEY = "job"  # the only one in Ray's configuration of a trial


@dataclass(frozen=True)
class Settings:
    """What a session tells all of its trials. ``cpus``, ``gpus``: of one trial. ``tags``: of every trial's run."""

    study: str
    storage: Storage
    tracking_uri: str
    cpus: float = 1
    gpus: float = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    system_metrics: bool = False


@dataclass(frozen=True)
class Job:
    """One trial of a session."""

    settings: Settings
    trial: Suggestion

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Job:
        """The job in Ray's configuration of a trial."""
        job = config[_KEY]
        assert isinstance(job, cls)
        return job

    def ray_config(self) -> dict[str, Any]:
        """Ray's configuration of the trial."""
        return {_KEY: self}

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def folder(self) -> Path:
        """The trial's own, in the study's storage."""
        return trial_folder(self.settings.storage, self.settings.study, self.number)

    def open_writer(self, tags: Mapping[str, str] | None = None, inputs: Sequence[DataInput] = ()) -> TrialWriter:
        """A started writer, which takes the trial's run over from whoever wrote to it before."""
        writer = TrialWriter(
            Ledger(self.settings.tracking_uri, self.settings.study),
            self.folder,
            trial=self.number,
            seed=self.trial.config.seed,
            params=self.trial.config.to_dict(),
            tags={**self.settings.tags, **self.trial.tags, **(tags or {})},
            inputs=inputs,
            storage=self.settings.storage,
        )
        writer.start()
        return writer
