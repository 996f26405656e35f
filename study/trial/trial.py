"""What one trial is: train epoch by epoch, score, checkpoint, resume. Knows torch; knows nothing of Ray or MLflow."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from study import metrics, names
from study.config import EvaluationConfig, TrialConfig, fingerprint
from study.data import Dataset, Split, open_dataset
from study.data.augment import normalize
from study.errors import ArtifactError, InputError
from study.faithfulness import FaithfulnessReport, evaluate_faithfulness
from study.faithfulness.calibration import calibrate
from study.faithfulness.report import write_per_image
from study.networks import build
from study.networks.initialization import fit, initialize
from study.storage.storage import Storage
from study.training.checkpoint import load_checkpoint, restore, save_checkpoint, save_model
from study.training.engine import make_step
from study.training.loop import make_optimizer, train_epoch
from study.trial.log import TrialLog

_FIT_IMAGES = 5000  # training images that a network's fixed layers are fitted to
_CHECK_IMAGES = 8  # validation images whose logits travel with the weights, to prove a re-load


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def score_network(
    network: nn.Module,
    dataset: Dataset,
    evaluation: EvaluationConfig,
    device: torch.device,
    on_images: Callable[[int, int], None] | None = None,
) -> FaithfulnessReport:
    """Score a network's maps at the temperature that is fitted to images which are not scored."""
    reserved = dataset.calibration(evaluation.calibration_images)
    scored = dataset.scored(evaluation.images, evaluation.calibration_images)
    temperature = calibrate(
        network,
        torch.as_tensor(reserved.images),
        torch.as_tensor(reserved.labels),
        mean=dataset.mean,
        std=dataset.std,
        device=device,
    )
    return evaluate_faithfulness(
        network,
        torch.as_tensor(scored.images),
        torch.as_tensor(scored.labels),
        mean=dataset.mean,
        std=dataset.std,
        config=evaluation,
        temperature=temperature,
        device=device,
        on_images=on_images,
    )


class Trial:
    """One training and its scoring, in one folder; opening the folder again continues where it stopped.

    ``history`` has one report per finished epoch: ledger names to numbers, beside ``epoch`` (from 1). It is saved
    with the weights in one atomic file, so a kill at any moment loses at most the epoch under way.

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
        train = self.dataset.train
        self._images = torch.as_tensor(train.images).to(self.device)
        self._labels = torch.as_tensor(train.labels).to(self.device)
        if not self.history:  # else the checkpoint has brought what was fitted
            fit(self.network, normalize(self._images[:_FIT_IMAGES], self.dataset.mean, self.dataset.std))
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

        After a non-finite loss the weights are untouched by it, ``reason`` says what happened and nothing is
        scored or saved. Raises RuntimeError when already finished.
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
            self._images,
            self._labels,
            self.config,
            epoch,
            self.dataset.mean,
            self.dataset.std,
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
        report |= self._classify(self.dataset.validation)
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
        """The images that this trial uses, as :class:`study.ledger.DataInput` takes them; digests cover the split."""
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
        """What a reader of the weights needs: network, preprocessing, configuration, scores and their protocol."""
        rows = min(_CHECK_IMAGES, len(self.dataset.validation.labels))
        x = normalize(torch.as_tensor(self.dataset.validation.images[:rows]), self.dataset.mean, self.dataset.std)
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

    @torch.no_grad()
    def _classify(self, split: Split) -> dict[str, float]:
        """Top-1 accuracy (%), its standard error (pp) and mean cross-entropy (nats) over a whole split."""
        self.network.eval()
        try:
            loss = torch.zeros((), device=self.device, dtype=torch.float64)
            correct = torch.zeros((), device=self.device, dtype=torch.int64)
            for start in range(0, len(split.labels), 500):
                images = torch.as_tensor(split.images[start : start + 500]).to(self.device)
                labels = torch.as_tensor(split.labels[start : start + 500]).to(self.device)
                logits = self.network(normalize(images, self.dataset.mean, self.dataset.std))
                loss += F.cross_entropy(logits.float(), labels, reduction="sum")
                correct += (logits.argmax(1) == labels).sum()
        finally:
            self.network.train()
        n = len(split.labels)
        share = correct.item() / n
        return {
            metrics.ACCURACY.ledger_name: 100 * share,
            metrics.ACCURACY_ERROR: 100 * math.sqrt(share * (1 - share) / n),
            metrics.LOSS.ledger_name: loss.item() / n,
        }

    def _faithfulness(self) -> FaithfulnessReport:
        return score_network(self.network, self.dataset, self.config.evaluation, self.device)

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
            self._storage.refresh(self._checkpoint)  # another machine may have gone on since this one had it
        if not self._checkpoint.exists():
            return
        checkpoint = load_checkpoint(self._checkpoint)
        try:
            stored = TrialConfig.from_dict(checkpoint.header["config"])
            data_fingerprint, history = checkpoint.header["data_fingerprint"], _reports(checkpoint.header["history"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{self._checkpoint}: not a checkpoint of this program: {error}") from None
        mine, theirs = self._comparable(self.config), self._comparable(stored)
        if stored.epochs > self.config.epochs:
            mine["epochs"], theirs["epochs"] = self.config.epochs, stored.epochs
        if mine != theirs or data_fingerprint != self.dataset.fingerprint:
            keys = [k for k in mine if mine[k] != theirs.get(k)] or ["data content"]
            raise InputError(
                f"{self._checkpoint}: belongs to another training (they differ in {', '.join(keys)}); "
                "choose another folder"
            )
        restore(checkpoint, self.network, self.optimizer)
        self.history = history
        if checkpoint.header.get("protocol") != self._protocol:
            self._forget_scores()

    def _forget_scores(self) -> None:
        """Scores made under another protocol are not this training's: those of its last epoch are made again."""
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

    @staticmethod
    def _comparable(config: TrialConfig) -> dict[str, Any]:
        """The same data may lie in another folder on another machine; its content is compared by itself.

        A constant learning rate does not know the horizon: such a training may be continued to a later one.
        """
        values = config.to_dict()
        if config.schedule == "constant":
            del values["epochs"], values["rungs"]
        return {**values, "data": {**values["data"], "source": ""}}


def _reports(history: Any) -> list[dict[str, float]]:
    """A checkpoint's history as it is: epochs 1, 2, ... Raises ValueError and its like for anything else."""
    if not history or [report["epoch"] for report in history] != list(range(1, len(history) + 1)):
        raise ValueError("its history is not one of epochs 1, 2, ...")
    for report in history:
        for name, value in report.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} is {value!r}, not a number")
    return history
