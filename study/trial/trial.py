"""One trial: train epoch by epoch, score, checkpoint, resume. It uses torch, and neither Ray nor MLflow."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from study import metrics, names
from study.config import TrialConfig, fingerprint
from study.data import Dataset, open_dataset
from study.data.labelled import LabelledImages
from study.faithfulness import FaithfulnessReport, score_network
from study.faithfulness.report import write_per_image
from study.networks import build
from study.networks.initialization import fit, initialize
from study.networks.state import default_device
from study.storage.storage import Storage
from study.training.accuracy import classify
from study.training.checkpoint import load_checkpoint, restore, save_checkpoint, save_model
from study.training.engine import make_step
from study.training.loop import make_optimizer, train_epoch
from study.trial.log import TrialLog
from study.trial.resume import stored_history

_FIT_IMAGES = 5000  # training images that a network's fixed layers are fitted to
_CHECK_IMAGES = 8  # validation images whose logits are in the card, to check loaded weights against


class Trial:
    """One training and its scoring, in one folder; opening the folder again continues where it stopped.

    ``history`` has one report per finished epoch: ledger names to numbers, beside ``epoch`` (from 1). It is saved
    with the weights in one atomic file, so a kill at any moment loses at most the epoch under way. ``train``: the
    training images, on the device.

    Raises :class:`InputError` where the folder holds a checkpoint of another configuration or other data.
    """

    def __init__(
        self, config: TrialConfig, folder: Path, *, storage: Storage | None = None, device: torch.device | None = None
    ) -> None:
        self.config = config
        self.folder = folder
        self.device = device or default_device()
        self.dataset: Dataset = open_dataset(config.data)
        self.history: list[dict[str, float]] = []
        self.reason = ""  # why the trial ended without a score
        self.report: FaithfulnessReport | None = None
        self._storage = storage
        self._checkpoint = folder / names.CHECKPOINT_FILE
        folder.mkdir(parents=True, exist_ok=True)
        self._log = TrialLog(folder)
        if storage is not None:
            storage.pull(self._log.file)
        with self._log.watched("opening"):
            self._open()

    def _open(self) -> None:
        torch.manual_seed(self.config.seed)
        self.network = build(self.config.network, self.dataset.n_classes).to(self.device)
        initialize(self.network, self.config.initialization)
        self.network = self.network.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.network, self.config)
        self._step_with = make_step(self.config.engine, self.device)
        self._resume()
        self.train = LabelledImages.of(self.dataset, self.dataset.train).to(self.device)
        if not self.history:  # else the fitted layers are in the checkpoint
            fit(self.network, self.train[:_FIT_IMAGES].normalized())
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        self._log.write(
            f"attempt on {device}, torch {torch.__version__}, after epoch {self.epoch} of {self.config.epochs}: "
            f"{json.dumps(self.config.to_dict())}"
        )

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def finished(self) -> bool:
        """Trained for the full budget and scored, or diverged."""
        return bool(self.reason) or self.epoch >= self.config.epochs

    @property
    def state(self) -> str:
        if self.reason:
            return names.DIVERGED
        return names.COMPLETE if self.finished else names.RUNNING

    def step(self, on_step: Callable[[int, int], None] | None = None) -> dict[str, float]:
        """Train one epoch, score it, save, and return its report. ``on_step(done, of)`` follows the batches.

        A non-finite loss changes no weight: ``reason`` says what happened and nothing is scored or saved. Raises
        RuntimeError when already finished.
        """
        if self.finished:
            raise RuntimeError("this trial is finished")
        with self._log.watched(f"epoch {self.epoch + 1}"):
            report = self._step(on_step)
        shown = {name: f"{value:.6g}" for name, value in report.items() if name != "epoch"}
        self._log.write(f"epoch {report['epoch']}/{self.config.epochs} {self.reason or json.dumps(shown)}")
        return report

    def _step(self, on_step: Callable[[int, int], None] | None) -> dict[str, float]:
        epoch = self.epoch
        result = train_epoch(
            self.network,
            self.optimizer,
            self.train,
            self.config,
            epoch,
            step_with=self._step_with,
            on_step=on_step,
        )
        if not result.finite:
            self.reason = f"non-finite loss in epoch {epoch + 1}"
            return {"epoch": epoch + 1}
        report: dict[str, float] = {
            "epoch": epoch + 1,
            metrics.TRAIN_LOSS: result.loss,
            metrics.TRAIN_CLASSIFICATION: result.classification,
            metrics.TRAIN_ACCURACY: result.accuracy,
            metrics.LEARNING_RATE: result.lr,
            metrics.EPOCH_SECONDS: result.seconds,
            metrics.PARAMETERS.ledger_name: float(sum(p.numel() for p in self.network.parameters())),
        }
        if result.regularization is not None:
            report[metrics.TRAIN_REGULARIZATION] = result.regularization
        start = time.perf_counter()
        classified = classify(self.network, LabelledImages.of(self.dataset, self.dataset.validation))
        report |= {
            metrics.ACCURACY.ledger_name: classified.accuracy,
            metrics.ACCURACY_ERROR: classified.standard_error,
            metrics.LOSS.ledger_name: classified.loss,
        }
        if self._is_scored(epoch + 1):
            self.report = self._faithfulness()
            report |= self.report.metrics()
        report[metrics.EVALUATION_SECONDS] = time.perf_counter() - start
        if not math.isfinite(report[metrics.LOSS.ledger_name]):
            self.reason = f"non-finite validation loss after epoch {epoch + 1}"
            return {"epoch": epoch + 1}
        self.history.append(report)
        self._save()
        return report

    def export(self, folder: Path) -> list[Path]:
        """Write the finished network, its card and the per-image scores to ``folder``; the files written."""
        if self.report is None:  # finished in an earlier process: scoring is deterministic, so score again
            self.report = self._faithfulness()
        save_model(folder, self.network, self.card())
        write_per_image(folder / names.PER_IMAGE_FILE, self.report.per_image)
        return [folder / name for name in (names.MODEL_FILE, names.MODEL_CONFIG_FILE, names.PER_IMAGE_FILE)]

    def inputs(self) -> list[dict[str, Any]]:
        """The images of this trial, as :class:`study.ledger.DataInput` takes them; digests cover the split."""
        data = self.config.data
        return [
            {
                "name": Path(data.source).name,
                "digest": fingerprint({**dataclasses.asdict(data), "source": self.dataset.fingerprint, "as": context})[
                    :32
                ],
                "source": data.source,
                "context": context,
                "images": len(split.labels),
            }
            for context, split in (("training", self.dataset.train), ("validation", self.dataset.validation))
        ]

    def card(self) -> dict[str, Any]:
        """What is needed to use the weights: network, preprocessing, configuration, scores and their protocol."""
        rows = min(_CHECK_IMAGES, len(self.dataset.validation.labels))
        x = LabelledImages.of(self.dataset, self.dataset.validation, rows).normalized()
        return {
            "network": self.config.network,
            "n_classes": self.dataset.n_classes,
            "classes": list(self.dataset.classes),
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
            "config": self.config.to_dict(),
            "data_fingerprint": self.dataset.fingerprint,
            "scores": self.history[-1] if self.history else {},
            "protocol": self.report.protocol if self.report else None,
            "temperature": self.report.temperature if self.report else None,
            "check": {"images": list(range(rows)), "logits": self._cpu_logits(x).tolist()},
        }

    @torch.no_grad()
    def _cpu_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 logits on the CPU, so that any machine can compare with them."""
        network = build(self.config.network, self.dataset.n_classes)
        network.load_state_dict({k: v.cpu() for k, v in self.network.state_dict().items()})
        return network.eval()(x)

    def _faithfulness(self) -> FaithfulnessReport:
        return score_network(self.network, self.dataset, self.config.evaluation)

    def _save(self) -> None:
        header = {
            "config": self.config.to_dict(),
            "data_fingerprint": self.dataset.fingerprint,
            "n_classes": self.dataset.n_classes,
            "history": self.history,
            "protocol": self._protocol,
        }
        save_checkpoint(self._checkpoint, self.network, self.optimizer, header)
        if self._storage is not None:
            self._storage.push(self._checkpoint)
            if self._log.file.exists():
                self._storage.push(self._log.file)

    def _resume(self) -> None:
        if self._storage is not None:
            self._storage.refresh(self._checkpoint)  # another machine may have continued the trial since
        if not self._checkpoint.exists():
            return
        checkpoint = load_checkpoint(self._checkpoint)
        history = stored_history(checkpoint, self.config, self.dataset.fingerprint)
        restore(checkpoint, self.network, self.optimizer)
        self.history = history
        if checkpoint.header.get("protocol") != self._protocol:
            self._forget_scores()

    def _forget_scores(self) -> None:
        """Drop scores made under another protocol; make those of the last epoch again where it is one to score."""
        self.history = [{k: v for k, v in r.items() if not metrics.is_score(k)} for r in self.history]
        if self._is_scored(self.epoch):
            self.report = self._faithfulness()
            self.history[-1] |= self.report.metrics()
        self._save()

    def _is_scored(self, epoch: int) -> bool:
        return epoch in self.config.rungs or epoch == self.config.epochs

    @property
    def _protocol(self) -> str:
        return metrics.protocol_identity(self.config.evaluation.protocol)
