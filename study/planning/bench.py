"""The work of a trial on one network and random images, to be timed."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from study.config import TrialConfig
from study.data.labelled import LabelledImages
from study.faithfulness import evaluate_faithfulness
from study.faithfulness.report import write_per_image
from study.names import PER_IMAGE_FILE
from study.networks import build
from study.training.accuracy import classify
from study.training.checkpoint import save_checkpoint
from study.training.engine import make_step
from study.training.loop import make_optimizer, train_epoch

KINDS = ("plain", "regularized", "classified", "scored", "masked", "saved")
MASKED = 2  # images that an evaluation masks at least
_SMALL = 16  # images with which a slow network is timed
_TOO_SLOW = 3.0  # seconds of a step, or of a scoring, above which fewer images are timed
_TEMPERATURE = 2.0  # of what is timed: not 1, at which some maps would be made once instead of twice


class Bench:
    """Times training steps, classification, scoring and saving of one network.

    ``scale``: seconds of the whole batch per second of what is timed. ``scored_images``: how many are scored at a time.
    """

    def __init__(self, config: TrialConfig, n_classes: int, device: torch.device) -> None:
        torch.manual_seed(0)
        # The rate is small so that the network does not diverge on random labels.
        base = dataclasses.replace(config, epochs=1, rungs=(), lr=1e-4, warmup_epochs=0)
        self._configs = {
            "plain": dataclasses.replace(base, reg_weight=0.0),
            "regularized": dataclasses.replace(
                base, reg_weight=1.0, reg_error=config.reg_error or "cosine", reg_interval=1
            ),
        }
        self._device = device
        self._n_classes = n_classes
        self._network = build(config.network, n_classes).to(device).to(memory_format=torch.channels_last)
        self._optimizer = make_optimizer(self._network, config)
        self._step_with = make_step(config.engine, device)
        self._evaluation = config.evaluation
        self.scale = 1.0
        self._images = self._drawn(_SMALL)
        self._choose_batch()
        self._score(2)  # the first call is slow
        # An evaluation's fixed cost equals that of many images of a small network: time as many as there is time for.
        an_image = max((self._score(12) - self._score(2)) / 10, 1e-4)
        most = min(self._evaluation.batch_size, self._evaluation.images or 10**9, 100, int(_TOO_SLOW / an_image))
        self.scored_images = max(4, most)
        self._once = {"plain": self._steps("plain", 1), "regularized": self._steps("regularized", 1)}
        self._once |= {"classified": self._classify(), "saved": self._save()}
        self._once |= {"scored": self._score(masked=MASKED), "masked": self._score()}

    def _choose_batch(self) -> None:
        """Time steps of the whole batch, or, where one takes long, of a few images and multiply by ``scale``."""
        whole, batch = self._configs, self._configs["plain"].batch_size
        if self._device.type == "cpu" and batch > _SMALL:
            self._configs = {k: dataclasses.replace(c, batch_size=_SMALL, accumulate=1) for k, c in whole.items()}
            if min(self._steps("plain", 1), self._steps("plain", 1)) * batch / _SMALL > _TOO_SLOW:
                self.scale = batch / _SMALL
                return
            self._configs = whole
        self._images = self._drawn(max(batch, 100))

    def _drawn(self, n: int) -> LabelledImages:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, device=self._device)
        labels = torch.randint(0, self._n_classes, (n,), device=self._device)
        return LabelledImages(pixels, labels, mean=(0.5,) * 3, std=(0.25,) * 3)

    def timed(self, kind: str, slot: float) -> float:
        """Seconds of one step, image or checkpoint: the mean over about ``slot`` seconds, one repetition at least."""
        works: dict[str, Callable[[int], float]] = {
            "plain": lambda n: self.scale * self._steps("plain", n),
            "regularized": lambda n: self.scale * self._steps("regularized", n),
            "classified": lambda n: statistics.fmean(self._classify() for _ in range(n)) / len(self._images),
            "scored": lambda n: statistics.fmean(self._score(masked=MASKED) for _ in range(n)) / self.scored_images,
            "masked": lambda n: statistics.fmean(self._score() for _ in range(n)) / self.scored_images,
            "saved": lambda n: statistics.fmean(self._save() for _ in range(n)),
        }
        return works[kind](min(200, max(1, round(slot / max(self._once[kind], 1e-4)))))

    def _steps(self, kind: str, n: int) -> float:
        """Seconds of one step, by the loop that trains."""
        config = self._configs[kind]
        images = self._images[[i % len(self._images) for i in range(n * config.batch_size)]]
        return train_epoch(self._network, self._optimizer, images, config, 0, step_with=self._step_with).seconds / n

    def _classify(self) -> float:
        """Seconds of classifying all images."""
        start = time.perf_counter()
        classify(self._network, self._images)
        return time.perf_counter() - start

    def _score(self, n: int | None = None, masked: int | None = None) -> float:
        """Seconds of scoring ``n`` images (None: :attr:`scored_images`), ``masked`` of them (None: all) masked too."""
        images = self._images[: n or self.scored_images].to(torch.device("cpu"))
        config = dataclasses.replace(self._evaluation, masking_images=masked)
        report = evaluate_faithfulness(self._network, images, config, temperature=_TEMPERATURE)
        if masked is None:
            self._table = report.per_image
        return report.seconds

    def _save(self) -> float:
        """Seconds of writing a checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "checkpoint"
            start = time.perf_counter()
            save_checkpoint(file, self._network, self._optimizer, {})
            seconds = time.perf_counter() - start
            self._checkpoint_bytes = file.stat().st_size
        return seconds

    def sizes(self) -> dict[str, float]:
        """Bytes of the files that a trial leaves, measured, because some are compressed."""

        def table_bytes(rows: int) -> int:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / PER_IMAGE_FILE
                write_per_image(file, {k: v[:rows] for k, v in self._table.items()})
                return file.stat().st_size

        n = len(self._table["label"])
        model = sum(t.numel() * t.element_size() for t in self._network.state_dict().values())
        row = (table_bytes(n) - table_bytes(1)) / max(n - 1, 1)
        return {
            "checkpoint_bytes": float(self._checkpoint_bytes),
            "model_bytes": float(model),
            "row_bytes": row,
            "table_bytes": table_bytes(1) - row,
        }
