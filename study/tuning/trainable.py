"""The Ray Tune trainable: a thin shell around :class:`study.trial.trial.Trial` that writes the ledger as it goes."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from study import names
from study.errors import StorageError
from study.ledger import DataInput, SupersededError, SystemMetricsSampler
from study.tuning.faults import STORAGE_AWAY, STORAGE_FULL, cause_in_system, is_away, is_full, is_mounted
from study.tuning.job import Job

_RAY_CHECKPOINT = "progress.json"
_STORAGE_SECONDS = 900.0  # that a storage may be away before this is the trial's failure
_STORAGE_PAUSE = 5.0  # seconds between tries


class StudyTrainable(tune.Trainable):
    """Trains one epoch a step. A restarted worker continues from the checkpoint in the trial's own folder.

    Ray's configuration holds a :class:`study.tuning.job.Job`.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Open nothing yet: Ray may start a process for a trial that by then runs, or has ended, in another one."""
        self.job = Job.of(config)
        self._opened = False
        self._sampler: SystemMetricsSampler | None = None
        self._away_since: float | None = None

    def cleanup(self) -> None:
        """Ray has no more steps for this trial, which may go on elsewhere: its book stays open."""
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process: a new one would import everything again."""
        self.cleanup()
        self.setup(new_config)
        return True

    def _open(self) -> None:
        import torch

        from study.trial.trial import Trial  # here, so that the driver does not import torch to name this class

        settings, config = self.job.settings, self.job.trial.config
        torch.set_num_threads(max(1, int(settings.cpus)))
        if 0 < settings.gpus < 1 and torch.cuda.is_available():  # the rest of the memory belongs to its neighbours
            torch.cuda.set_per_process_memory_fraction(settings.gpus)
        if not is_mounted(settings.storage, settings.study):
            raise OSError(errno.ENODEV, "the study is not in the storage that this machine sees; is it mounted?")
        self.trial = Trial(config, self.job.folder, storage=settings.storage)
        self.writer = self.job.open_writer(
            {names.TAG_HOST: ray.util.get_node_ip_address()}, [DataInput(**values) for values in self.trial.inputs()]
        )
        self.writer.report(self.trial.history)
        if settings.system_metrics:
            self._sampler = SystemMetricsSampler(self.writer)
            self._sampler.start()

    def step(self) -> dict[str, Any]:
        try:
            result = self._step()
            self._away_since = None
            return result
        except (OSError, StorageError) as error:
            cause = cause_in_system(error)
            if cause is None or not (is_full(cause) or self._waits_for(cause)):
                raise
            self.cleanup()
            self._opened = False  # what could not be saved is trained again, from the checkpoint
            said = {STORAGE_FULL: True} if is_full(cause) else {STORAGE_AWAY: str(cause)}
            reason = "" if is_full(cause) else f"its storage does not answer ({cause.strerror or cause})"
            return {"epoch": 0, "state": names.RUNNING, "reason": reason, "report": {}, **said}

    def _waits_for(self, error: OSError) -> bool:
        """Whether the storage is away and may come back; if so, after a pause."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        away = is_away(error, self.job.settings.storage, self.job.settings.study)
        if not away or now - self._away_since > _STORAGE_SECONDS:
            return False
        time.sleep(_STORAGE_PAUSE)
        return True

    def _step(self) -> dict[str, Any]:
        past: list[tuple[int, dict[str, float]]] = []
        if not self._opened:
            self._open()
            self._opened = True
            rungs = self.job.trial.config.rungs
            past = [(int(r["epoch"]), r) for r in self.trial.history if r["epoch"] in rungs]
        if not self.trial.finished:
            self.trial.step()
            self.writer.report(self.trial.history)
        if self.writer.superseded:
            raise SupersededError("another process has taken this trial over")
        if self.trial.finished:
            self._finish()
        report = self.trial.history[-1] if self.trial.history else {}
        return {
            "epoch": self.trial.epoch,
            "state": self.trial.state,
            "reason": self.trial.reason,
            "report": report,
            names.PAST_RUNGS: past,
            "done": self.trial.finished,
        }

    def _finish(self) -> None:
        """Give the ledger the rest before Ray hears of the end; while the ledger is away, the journal keeps it."""
        self.cleanup()
        if self.trial.state == names.DIVERGED:
            self.writer.finish(names.DIVERGED, reason=self.trial.reason)
            return
        files = self.trial.export(self.trial.folder)
        final = {k: v for k, v in self.trial.history[-1].items() if k != "epoch"}
        protocol = self.trial.card()["protocol"]
        self.writer.finish(names.COMPLETE, scores=final, files=files, tags={names.TAG_PROTOCOL: protocol})

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Ray asks for one when it pauses a trial; what matters is in the trial's own folder already."""
        (Path(checkpoint_dir) / _RAY_CHECKPOINT).write_text(
            json.dumps({"epoch": self.trial.epoch if self._opened else 0})
        )

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to do: the first step continues from the trial's own folder."""
