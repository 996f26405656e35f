"""The networks that faithfulness is chosen and tested on: ``python -m benchmarks.yardstick_networks --data FOLDER``.

Trains what is missing, a process for every part of ``--of``: real CIFAR-100, the product's own trial. Interrupted, the
same command goes on. Each network is saved after the epochs that its entry names, 0 being the untrained one.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from study.config import DataConfig, EvaluationConfig, TrialConfig
from study.faithfulness.grid import CELLS
from study.training.checkpoint import save_model
from study.trial.trial import Trial

#: Scored by the yardstick itself, not by the trial.
_EVALUATION = EvaluationConfig(methods=("grad_cam",), images=10, batch_size=10)
FOLDER = Path("results/yardstick")
METHODS = ("grad_cam", "grad_cam_plus_plus")
MIXES = (25, 50, 75)  # percent of a map that is replaced by one of its shifts


@dataclass(frozen=True)
class Entry:
    """One training. ``group`` says what it is for; entries that differ in their seed alone share ``name``."""

    group: str  # trained | long | collapsed | shuffled | deletions | grids
    name: str
    config: TrialConfig
    saved: tuple[int, ...]

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.config.seed}"


@dataclass(frozen=True)
class Sample:
    """Networks that learned nothing: their seeds, images for each (35,000 in all), and the epochs to score."""

    name: str
    seeds: range
    images: int
    saved: tuple[int, ...]

    def part(self, seed: int) -> int:
        """Which of the disjoint sets of images a seed is scored on."""
        return seed - self.seeds.start


SAMPLES = (
    Sample("", range(10), 3500, (0, 1)),
    Sample(", again", range(10, 30), 1750, (0, 1)),
    Sample(", planned", range(30, 90), 583, (1,)),
)


def recipe(
    network: str, epochs: int, seed: int, *, reg_weight: float = 0.0, lr: float = 0.4, **other: object
) -> TrialConfig:
    """The quick recipe (docs/decisions/0023): a triangular rate, lambda ramped up over the first fifth."""
    values: dict[str, Any] = {
        "batch_size": 256, "schedule": "linear", "warmup_epochs": epochs / 5, "reg_warmup_epochs": epochs / 5,
        "norm_lr_multiple": 8.0, "label_smoothing": 0.1, "initialization": "dirac", "crop_mode": "reflect",
        "crop_padding": 2, "evaluation": _EVALUATION, **other,
    }  # fmt: skip
    return TrialConfig(network=network, epochs=epochs, lr=lr, seed=seed, reg_weight=reg_weight, **values)


def entries(source: str) -> list[Entry]:
    """In the order in which they are trained: pairs of seeds stay together."""
    whole, part = DataConfig(source=source), DataConfig(source=source, train_images=10_000)
    found: list[Entry] = []

    def pair(name: str, network: str, epochs: int, **other: object) -> None:
        for seed in (0, 1):
            config = recipe(network, epochs, seed, data=whole, **other)  # type: ignore[arg-type]
            found.append(Entry("trained", name, config, (epochs,)))

    pair("airbench16-3", "airbench16", 3)
    for sample in SAMPLES:
        for seed in sample.seeds:
            config = TrialConfig(
                "tiny", 1, 0.1, reg_weight=3.0, batch_size=64, seed=seed, data=part, evaluation=_EVALUATION
            )
            found.append(Entry("collapsed", "tiny-collapsed", config, sample.saved))
    pair("tiny-4", "tiny", 4)
    pair("airbench16-3-lambda0.3", "airbench16", 3, reg_weight=0.3)
    pair("tiny-4-lambda0.3", "tiny", 4, reg_weight=0.3)
    pair("airbench16-3-rate0.1", "airbench16", 3, lr=0.1)
    pair("airbench16-2", "airbench16", 2)
    pair("tiny-6", "tiny", 6)
    pair("airbench16-2-lambda0.1", "airbench16", 2, reg_weight=0.1)
    pair("tiny-4-rate0.2", "tiny", 4, lr=0.2)
    pair("airbench16-2-lambda0.03", "airbench16", 2, reg_weight=0.03)
    pair("airbench16-2-rate0.2", "airbench16", 2, lr=0.2)
    pair("tiny-4-rate0.8", "tiny", 4, lr=0.8)
    for seed in range(5):
        config = recipe("tiny", 4, seed, data=part)
        found.append(Entry("shuffled", "tiny-shuffled", config, (4,)))
    for seed in (0, 1):
        config = recipe("airbench16", 12, seed, data=whole)
        found.append(Entry("long", "airbench16-12", config, (1, 2, 3, 6, 12)))
    for seed in (0, 1):
        config = recipe("airbench16", 3, seed, data=whole)
        found.append(Entry("deletions", "airbench16-3-deletions", config, (3,)))
    for seed in (0, 1):
        found.append(Entry("grids", "small-3", recipe("small", 3, seed, data=whole), (3,)))
    return found


def saved(entry: Entry, epoch: int, folder: Path = FOLDER) -> Path:
    return folder / entry.folder / f"epoch-{epoch:02d}"


def train(entry: Entry, folder: Path = FOLDER) -> None:
    """Train one network, or go on with it, saving it after the epochs of the entry."""
    trial = Trial(entry.config, folder / entry.folder)
    if entry.group == "shuffled":  # every image keeps a wrong label throughout
        order = torch.randperm(len(trial.train), generator=torch.Generator().manual_seed(entry.config.seed))
        trial.train = dataclasses.replace(trial.train, labels_N=trial.train.labels_N[order])
    if entry.group == "deletions":  # masked images become part of what it was trained on (IDSDS)
        step, generator = trial._step_with, torch.Generator().manual_seed(entry.config.seed)

        def with_deletions(network: nn.Module, x_NCHW: Tensor, labels: Tensor, **how: object) -> object:
            return step(network, _without_cells(x_NCHW, generator), labels, **how)  # type: ignore[arg-type]

        trial._step_with = with_deletions  # type: ignore[assignment]

    def save() -> None:
        if trial.epoch in entry.saved:
            save_model(saved(entry, trial.epoch, folder), trial.network, trial.card())

    save()
    while not trial.finished:
        report = trial.step()
        print(
            entry.folder,
            report["epoch"],
            f"{report.get('val/accuracy', float('nan')):.1f} %",
            f"{report.get('time/epoch_seconds', 0):.0f} s",
            flush=True,
        )
        save()


def _without_cells(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images lose a random number of the grid's cells, up to half of them."""
    n = len(x_NCHW)
    share = 0.5 * torch.rand(n, 1, 1, 1, generator=generator) * (torch.rand(n, 1, 1, 1, generator=generator) < 0.5)
    kept = torch.rand(n, 1, CELLS, CELLS, generator=generator) >= share
    return x_NCHW * torch.nn.functional.interpolate(kept.to(x_NCHW.dtype), size=x_NCHW.shape[2:], mode="nearest")


def main() -> None:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.yardstick_networks", description=__doc__)
    parse.add_argument("--data", required=True, help="folder of CIFAR-100's Parquet files")
    parse.add_argument("--of", type=int, default=1, help="processes that share the work")
    parse.add_argument("--part", type=int, default=0, help="which of them this is")
    args = parse.parse_args()
    torch.set_num_threads(1)
    for i, entry in enumerate(entries(args.data)):
        if i % args.of == args.part and not all((saved(entry, e) / "model.json").exists() for e in entry.saved):
            train(entry)


if __name__ == "__main__":
    main()
