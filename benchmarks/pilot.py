"""Which gradient should the regularizer align? ``python -m benchmarks.pilot --data FOLDER`` trains what is missing.

airbench16 on all of real CIFAR-100, by the product's own trial: each of :data:`study.config.REG_GRADIENTS` over lambda.
A finished training is a line of ``benchmarks/data/pilot.jsonl``, an interrupted one costs itself only. Seeds are worked
off one after the other, so that whatever stops it leaves every configuration with the same seeds, or one less.
``--table`` and ``--picture FILE`` show what was found. docs/decisions/0027 has the criterion.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import rows, stock
from benchmarks.pilot_table import DETACHED, FIRST_SEED, SEEDS, WEIGHTS, picture, table
from benchmarks.yardstick_networks import recipe
from study.config import REG_GRADIENTS, DataConfig, EvaluationConfig
from study.data.augment import normalize
from study.networks.guided import cross_entropy_gradient, record
from study.trial.trial import Trial

ROWS = Path(__file__).parent / "data" / "pilot.jsonl"
NETWORK, EPOCHS = "airbench16", 6
FIRST_WEIGHTS = (*WEIGHTS, 10.0)
_BATCH = 250


@dataclass(frozen=True)
class Entry:
    """One training; ``warmup`` is the share of it over which lambda is ramped up."""

    gradient: str
    weight: float
    seed: int
    warmup: float = 0.2


def entries() -> Iterator[Entry]:
    """In the order in which they are trained."""
    yield Entry("batch", 0.0, FIRST_SEED)
    for weight in FIRST_WEIGHTS:
        yield from (Entry(gradient, weight, FIRST_SEED) for gradient in REG_GRADIENTS)
    for weight in (0.0075, 0.03, 0.1, 0.3):
        yield from (Entry(gradient, weight, FIRST_SEED, warmup=0.0) for gradient in (DETACHED, "constant"))
    for seed in SEEDS[:2]:
        yield from _with_seed(seed)
    for weight in (1.0, 3.0, 10.0):
        yield from (Entry(gradient, weight, FIRST_SEED, warmup=0.0) for gradient in REG_GRADIENTS)
    for seed in SEEDS[2:]:
        yield from _with_seed(seed)


def _with_seed(seed: int) -> Iterator[Entry]:
    yield Entry("batch", 0.0, seed)
    for weight in WEIGHTS:
        yield from (Entry(gradient, weight, seed) for gradient in REG_GRADIENTS)


def run(entry: Entry, source: str) -> dict[str, Any]:
    """Train, score and measure one network."""
    config = recipe(
        NETWORK, EPOCHS, entry.seed, reg_weight=entry.weight,
        reg_gradient="constant" if entry.gradient == DETACHED else entry.gradient,
        data=DataConfig(source=source), reg_warmup_epochs=entry.warmup * EPOCHS, amp="none",
        evaluation=EvaluationConfig(images=1000, masking_images=200),
    )  # fmt: skip
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        trial = Trial(config, Path(folder))
        if entry.gradient == DETACHED:
            trial._step_with = stock.DetachedStep(trial.network)
        while not trial.finished:
            trial.step()
    found = {} if trial.reason else trial.history[-1] | measured(trial)
    device = torch.cuda.get_device_name() if trial.device.type == "cuda" else "CPU"
    seconds = time.perf_counter() - start
    return {**asdict(entry), "state": trial.state, "epoch": trial.epoch, "device": device, "seconds": seconds, **found}


def measured(trial: Trial) -> dict[str, float]:
    """All three alignments on validation images, and accuracy by other statistics than the running ones."""
    split = trial.dataset.validation
    x = normalize(torch.as_tensor(split.images).to(trial.device), trial.dataset.mean, trial.dataset.std)
    labels = torch.as_tensor(split.labels).to(trial.device)
    found = {}
    for gradient in REG_GRADIENTS:
        found[f"alignment/{gradient}"] = alignment(copy.deepcopy(trial.network).train(), x[:2500], labels, gradient)
    by_batch = copy.deepcopy(trial.network).train()
    with stock.noted_statistics(by_batch, detach=True) as statistics, torch.no_grad():
        by_batch(x[:2500])
    layers = [(layer, statistics[name]) for name, layer in trial.network.named_modules() if name in statistics]
    found["statistics/smallest variance"] = min(float(var.min()) for _, (_, var) in layers)
    found["statistics/running over present variance"] = max(
        float(((layer.running_var + layer.eps) / (var + layer.eps)).log().abs().max().exp())  # type: ignore[operator]
        for layer, (_, var) in layers
    )
    found["accuracy/batch statistics"] = accuracy(by_batch, x, labels)
    found["accuracy/statistics again"] = accuracy(statistics_again(trial), x, labels)
    return found


def alignment(network: nn.Module, x_NCHW: Tensor, labels: Tensor, through: str) -> float:
    """Mean cosine between the input gradient and the guided one."""
    cosines = []
    for x, y in zip(x_NCHW.split(_BATCH), labels[: len(x_NCHW)].split(_BATCH), strict=True):
        tape = record(network, x, through=through)
        g = cross_entropy_gradient(tape.logits_NK, y)
        cosines.append(F.cosine_similarity(tape.pull(g).flatten(1), tape.pull(g, guided=True).flatten(1)))
    return float(torch.cat(cosines).mean())


@torch.no_grad()
def accuracy(network: nn.Module, x_NCHW: Tensor, labels: Tensor) -> float:
    """In the network's present mode, in percent."""
    correct = [network(x).argmax(1) == y for x, y in zip(x_NCHW.split(_BATCH), labels.split(_BATCH), strict=True)]
    return 100 * float(torch.cat(correct).float().mean())


@torch.no_grad()
def statistics_again(trial: Trial) -> nn.Module:
    """The network with running statistics that are plain means over 5,000 training images."""
    network = copy.deepcopy(trial.network).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    images = torch.as_tensor(trial.dataset.train.images[:5000]).to(trial.device)
    for x in normalize(images, trial.dataset.mean, trial.dataset.std).split(_BATCH):
        network(x)
    return network.eval()


def main() -> None:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.pilot", description=__doc__)
    rows.add_arguments(parse, ROWS)
    parse.add_argument("--table", action="store_true", help="print what has been found")
    parse.add_argument("--picture", type=Path, help="draw what has been found")
    args = parse.parse_args()
    if args.data:
        rows.train(list(entries()), run, args)
    if args.table or args.picture:
        found = rows.read(args.rows)
        if args.table:
            print(table(found))
        if args.picture:
            picture(found, args.picture)


if __name__ == "__main__":
    main()
