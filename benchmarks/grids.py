"""What the common grid changes: ``python -m benchmarks.grids --data FOLDER``, on ``benchmarks.yardstick_networks``.

Deletion agreement of Grad-CAM and Grad-CAM++ with maps brought to 2x2, 4x4 and 8x8 cells and as many single deletions,
and its fall when half of each map is one of its shifts. ResNet-18's and MobileNet-V2's last map is 4x4 at 32x32 pixels:
the common grid is their own.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from benchmarks.yardstick import Subject
from benchmarks.yardstick_networks import FOLDER, METHODS
from study.config import DataConfig
from study.data import open_dataset
from study.faithfulness import deletion, grid
from study.faithfulness.controls import OTHERS
from study.networks.folding import folded
from study.saliency import saliency_maps

NETWORKS = ("small-3-0/epoch-03", "small-3-1/epoch-03", "tiny-4-0/epoch-04", "tiny-4-1/epoch-04",
            "airbench16-12-0/epoch-12", "airbench16-12-1/epoch-12")  # fmt: skip
GRIDS, IMAGES = (2, 4, 8), 500


def agreement(map_NZ: Tensor, drops: Tensor) -> Tensor:
    """Own minus the mean over other images, as :mod:`study.faithfulness.controls` has it."""
    others = [deletion.rank_agreement(map_NZ[grid.partners(len(map_NZ), k)], drops) for k in range(1, OTHERS + 1)]
    return deletion.rank_agreement(map_NZ, drops) - torch.stack(others).mean(0)


def scores(subject: Subject) -> dict[int, tuple[Tensor, Tensor]]:
    """By the grid's side: per-image agreement of the own maps, and of maps of which half is a shift."""
    x, network = subject.images(IMAGES).normalized(), folded(subject.network.eval())
    with torch.no_grad():
        logits = torch.cat([network(part) for part in x.split(100)])
        target = logits.argmax(1)
        found = {}
        for cells in GRIDS:
            kept = deletion.single_deletions(cells).expand(len(x), -1, -1)
            parts = zip(x.split(100), kept.split(100), target.split(100), strict=True)
            left = torch.cat([deletion.masked_logits(network, a, torch.zeros_like(a), k, t) for a, k, t in parts])
            drops = deletion.centred_logits(logits, target)[:, None] - left
            own, mixed = [], []
            for method in METHODS:
                maps = torch.cat([saliency_maps(subject.network, a, t, [method]).maps[method]
                                  for a, t in zip(x.split(100), target.split(100), strict=True)])  # fmt: skip
                on_grid = grid.to_grid(maps, cells)
                moved = grid.shifted(on_grid, grid.shift_offsets(len(x), 1, cells=cells)[:, 0])
                own.append(agreement(on_grid.flatten(1), drops))
                mixed.append(agreement((0.5 * on_grid + 0.5 * moved).flatten(1), drops))
            found[cells] = torch.stack(own).mean(0), torch.stack(mixed).mean(0)
    return found


def main() -> None:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.grids", description=__doc__)
    parse.add_argument("--data", required=True, help="folder of CIFAR-100's Parquet files")
    args = parse.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(DataConfig(source=args.data))
    print("| network | own map | " + " | ".join(f"{g}x{g} | half a shift" for g in GRIDS) + " |")
    print("|---|---|" + "---|---|" * len(GRIDS))
    for name in NETWORKS:
        subject = Subject(FOLDER / name, dataset)
        features = subject.network.features(subject.images(2).normalized())  # type: ignore[operator]
        cells = []
        for own, mixed in scores(subject).values():
            cells += [f"{own.mean():.1f} ± {own.std() / math.sqrt(len(own)):.1f}", f"{mixed.mean():.1f}"]
        print(f"| {name} | {features.shape[2]}x{features.shape[3]} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
