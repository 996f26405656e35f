"""The Ray Tune trainable: a thin shell around :class:`study.trial.Trial` that writes the ledger as it goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ray
from ray import tune

from study import metrics
from study.config import TrialConfig
from study.ledger import DataInput, Ledger, MachineSampler, SupersededError, TrialBook
from study.storage import Storage, trial_folder
from study.tuning.faults import STORAGE_FULL, is_full

_RAY_CHECKPOINT = "progress.json"


class StudyTrainable(tune.Trainable):
    """One epoch per step. The trial's own folder is the truth: a restarted worker continues from there.

    The configuration is what :meth:`study.tuning.searcher.StudySearcher.suggest` returns.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Open nothing yet: Ray may start a process for a trial that by then runs, or has ended, in another one."""
        self._settings = config
        self._opened = False
        self._sampler: MachineSampler | None = None

    def cleanup(self) -> None:
        """Ray has done with this trial: it may have stopped it, so nothing has ended here by itself."""
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process: a fresh one would import everything again."""
        self.cleanup()
        self.setup(new_config)
        return True

    def _open(self, config: dict[str, Any]) -> None:
        import torch

        from study.trial import Trial  # here, so that the driver does not import torch to name this class

        torch.set_num_threads(max(1, int(config["cpus"])))
        if 0 < config["gpus"] < 1 and torch.cuda.is_available():  # a neighbour's memory is not this trial's to take
            torch.cuda.set_per_process_memory_fraction(config["gpus"])
        self._trial_config = TrialConfig.from_dict(config["trial"])
        storage = Storage(Path(config["storage"]), config["storage_uri"])
        folder = trial_folder(storage, config["study"], config["number"])
        self.trial = Trial(self._trial_config, folder, storage=storage)
        self.book = TrialBook(
            Ledger(config["tracking_uri"], config["study"]),
            folder,
            trial=config["number"],
            seed=self._trial_config.seed,
            params=self._trial_config.to_dict(),
            tags={**config["tags"], metrics.TAG_HOST: ray.util.get_node_ip_address()},
            inputs=[DataInput(**values) for values in self.trial.inputs()],
        )
        self.book.report(self.trial.history)
        if config["system_metrics"]:
            self._sampler = MachineSampler(self.book)

    def step(self) -> dict[str, Any]:
        try:
            return self._step()
        except OSError as error:
            if not is_full(error):
                raise
            self._opened = False  # what could not be saved is trained again, from the checkpoint
            return {"epoch": 0, "state": metrics.RUNNING, "reason": "", "report": {}, STORAGE_FULL: True}

    def _step(self) -> dict[str, Any]:
        past: list[tuple[int, dict[str, float]]] = []
        if not self._opened:
            self._open(self._settings)
            self._opened = True
            rungs = self._trial_config.rungs
            past = [(int(r["epoch"]), r) for r in self.trial.history if r["epoch"] in rungs]
        if not self.trial.finished:
            self.trial.step()
            self.book.report(self.trial.history)
        if self.book.superseded:
            raise SupersededError("another process has taken this trial over")
        if self.trial.finished:
            self._finish()
        report = self.trial.history[-1] if self.trial.history else {}
        return {
            "epoch": self.trial.epoch,
            "state": self.trial.state,
            "reason": self.trial.reason,
            "report": report,
            metrics.PAST_RUNGS: past,
            "done": self.trial.finished,
        }

    def _finish(self) -> None:
        """Before Ray hears that the trial is over, the ledger has all of it; the journal, where the ledger is away."""
        self.cleanup()
        if self.trial.state == metrics.DIVERGED:
            self.book.finish(metrics.DIVERGED, reason=self.trial.reason)
            return
        files = self.trial.export(self.trial.folder)
        final = {k: v for k, v in self.trial.history[-1].items() if k != "epoch"}
        protocol = self.trial.card()["protocol"]
        self.book.finish(metrics.COMPLETE, scores=final, files=files, tags={metrics.TAG_PROTOCOL: protocol})

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Ray asks for one when it pauses a trial; what matters is in the trial's own folder already."""
        (Path(checkpoint_dir) / _RAY_CHECKPOINT).write_text(
            json.dumps({"epoch": self.trial.epoch if self._opened else 0})
        )

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to do: the first step continues from the trial's own folder."""
