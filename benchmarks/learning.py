"""What does a network learn in how many seconds? ``python -m benchmarks.learning --data FOLDER --table``.

Trains ``small`` and ``airbench`` of two widths on all of real CIFAR-100 by the product's own trial and one recipe,
plain and regularized, and goes on where it was interrupted. Seconds are those of the training loop, while
``--workers`` trainings run at once with the machine's cores divided among them.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.yardstick_networks import recipe
from study import metrics
from study.config import DataConfig, EvaluationConfig
from study.trial.trial import Trial

ROWS = Path(__file__).parent / "data" / "learning.jsonl"
#: The longest first, so that two workers end together.
NETWORKS, WEIGHTS, EPOCHS = ("airbench32", "airbench16", "small"), (0.3, 0.0), (3,)
#: Faithfulness is measured elsewhere; this is the least that a trial scores.
_EVALUATION = EvaluationConfig(methods=("grad_cam",), images=10, masking_images=2)


@dataclass(frozen=True)
class Entry:
    """One training. A schedule ends with its last epoch, so other epochs are another training."""

    network: str
    weight: float
    epochs: int
    seed: int = 0


ENTRIES = [Entry(network, weight, epochs) for epochs, network, weight in itertools.product(EPOCHS, NETWORKS, WEIGHTS)]


def run(entry: Entry, source: str) -> Row:
    """Train one network; what it knew after each epoch, and after how many seconds of training."""
    config = recipe(
        entry.network, entry.epochs, entry.seed, reg_weight=entry.weight, reg_gradient="constant",
        data=DataConfig(source=source), evaluation=_EVALUATION,
    )  # fmt: skip
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        trial = Trial(config, Path(folder))
        while not trial.finished:
            trial.step()
    return {
        **asdict(entry),
        "state": trial.state,
        "device": torch.cuda.get_device_name() if trial.device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "accuracy": [report[metrics.ACCURACY.ledger_name] for report in trial.history],
        "training_seconds": list(itertools.accumulate(r[metrics.EPOCH_SECONDS] for r in trial.history)),
        "seconds": time.perf_counter() - start,
    }


def table(found: Sequence[Row]) -> str:
    """A row per training: accuracy after so many seconds, epoch by epoch."""
    most = max(len(row["accuracy"]) for row in found)
    head = ["network", "λ", "seed", "device", *(f"epoch {i}: % after s" for i in range(1, most + 1))]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found:
        epochs = [f"{a:.1f} after {s:.0f}" for a, s in zip(row["accuracy"], row["training_seconds"], strict=True)]
        device = row["device"] if row["device"] != "CPU" else f"CPU, {row['threads']} thread"
        cells = [row["network"], f"{row['weight']:g}", str(row["seed"]), device, *epochs]
        lines.append("| " + " | ".join(cells + [""] * (len(head) - len(cells))) + " |")
    return "\n".join(lines)


def main() -> None:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    rows.add_arguments(parse, ROWS)
    parse.add_argument("--table", action="store_true", help="print what has been found")
    args = parse.parse_args()
    if args.data:
        rows.train(ENTRIES, run, args)
    if args.table:
        print(table(rows.read(args.rows)))


if __name__ == "__main__":
    main()
