"""Why do some gradients ruin inference? ``python -m benchmarks.lag --data FOLDER``: running statistics that lag behind.

Trains airbench16 with each reading of L_R, then only lets batch-norm's running statistics see more batches while all
weights rest. What changes by that was the lag of the statistics, not the network. Needs no GPU: 2 epochs each.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from benchmarks import stock
from benchmarks.pilot import accuracy, alignment
from benchmarks.pilot_table import DETACHED
from benchmarks.yardstick_networks import recipe
from study.config import DataConfig
from study.data.augment import augment, normalize
from study.trial.trial import Trial

CASES = (("inference", 0.1), (DETACHED, 0.1), ("constant", 0.1))
EPOCHS, RESTING = 2, 60
ROWS = Path(__file__).parent / "data" / "lag.jsonl"


@torch.no_grad()
def distance(network: nn.Module, x_NCHW: Tensor) -> float:
    """Root mean square over channels of the running mean's distance from the present one, in deviations."""
    twin = copy.deepcopy(network).train()
    with stock.noted_statistics(twin, detach=True) as found:
        twin(x_NCHW)
    layers = dict(network.named_modules())
    far = [(layers[n].running_mean - mean) / (var + layers[n].eps).sqrt() for n, (mean, var) in found.items()]  # type: ignore[operator]
    return float(torch.cat(far).square().mean().sqrt())


def look(trial: Trial, network: nn.Module) -> dict[str, float]:
    """At inference, on validation images."""
    split = trial.dataset.validation
    x = normalize(torch.as_tensor(split.images).to(trial.device), trial.dataset.mean, trial.dataset.std)
    labels, network = torch.as_tensor(split.labels).to(trial.device), copy.deepcopy(network).eval()
    return {
        "accuracy": accuracy(network, x, labels),
        "alignment": alignment(network, x[:1000], labels, "inference"),
        "distance": distance(network, x[:2500]),
    }


@torch.no_grad()
def rested(trial: Trial, *, augmented: bool) -> nn.Module:
    """The network after more batches of training images have passed, without a step."""
    network, config = copy.deepcopy(trial.network).train(), trial.config
    generator = torch.Generator(trial.device).manual_seed(0)
    for images in trial.train.pixels_NCHW[: 256 * RESTING].split(256):
        batch = images
        if augmented:  # as the training steps had them
            batch = augment(
                images, generator, padding=config.crop_padding, mode=config.crop_mode, flip=config.flip, rotation=0.0
            )
        network(normalize(batch, trial.dataset.mean, trial.dataset.std))
    return network


def main() -> None:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.lag", description=__doc__)
    parse.add_argument("--data", required=True, help="folder of CIFAR-100's Parquet files")
    args = parse.parse_args()
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for gradient, weight in CASES:
        if any((row["gradient"], row["weight"]) == (gradient, weight) for row in rows):
            continue
        named = "constant" if gradient == DETACHED else gradient
        config = recipe(
            "airbench16",
            EPOCHS,
            0,
            reg_weight=weight,
            reg_gradient=named,
            data=DataConfig(source=args.data),
            amp="none",
        )
        with TemporaryDirectory() as folder:
            trial = Trial(config, Path(folder))
            if gradient == DETACHED:
                trial._step_with = stock.DetachedStep(trial.network)
            while not trial.finished:
                trial.step()
        row = {"gradient": gradient, "weight": weight, "trained": look(trial, trial.network)}
        row["rested"] = look(trial, rested(trial, augmented=True))
        row["rested, plain images"] = look(trial, rested(trial, augmented=False))
        rows.append(row)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print("| gradient | λ | | accuracy at inference, % | alignment at inference | running mean off by, deviations |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        for when in ("trained", "rested", "rested, plain images"):
            found = row[when]
            cells = (f"{found['accuracy']:.1f}", f"{found['alignment']:.3f}", f"{found['distance']:.3f}")
            print(f"| {row['gradient']} | {row['weight']:g} | {when} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
