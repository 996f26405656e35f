"""Saliency maps and faithfulness scores, ours beside the libraries people use: ``python -m benchmarks.faithfulness``.

The same networks, images and classes go through pytorch-grad-cam 1.5.7 and torchcam 0.5.0. All variants take turns in
one process; ratios are taken within a round. Every comparison also says how far the numbers agree. The table of five
metrics is compared as the peers make it; what our evaluator measures beside it stands below, in units of the table.
The output ends with one line of JSON: how many times faster ours is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytorch_grad_cam
import torch
import torchcam.methods
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torch import Tensor, nn
from torchcam.metrics import DeletionInsertionMetric

from study.config import EvaluationConfig, TrialConfig
from study.data import open_dataset
from study.data.labelled import LabelledImages
from study.faithfulness import deletion
from study.faithfulness.batch import Batch, score_batch
from study.faithfulness.calibration import fit_temperature
from study.faithfulness.controls import agreements, masking_excess
from study.faithfulness.first_pass import first_pass
from study.faithfulness.masking import gaussian_blur
from study.faithfulness.protocols import PROTOCOLS
from study.faithfulness.scored_network import ScoredNetwork
from study.metrics import REFERENCE_MAPS
from study.networks import build
from study.networks.folding import folded
from study.saliency import saliency_maps
from study.saliency.perturbation import TOGETHER
from study.training.loop import make_optimizer, train_epoch

CAMS = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam")
TABLE = (*CAMS, "ablation_cam")
PGC = {
    "grad_cam": pytorch_grad_cam.GradCAM,
    "grad_cam_plus_plus": pytorch_grad_cam.GradCAMPlusPlus,
    "xgrad_cam": pytorch_grad_cam.XGradCAM,
    "ablation_cam": pytorch_grad_cam.AblationCAM,
    "score_cam": pytorch_grad_cam.ScoreCAM,
}
TORCHCAM = {
    "grad_cam": torchcam.methods.GradCAM,
    "grad_cam_plus_plus": torchcam.methods.GradCAMpp,
    "xgrad_cam": torchcam.methods.XGradCAM,
    "score_cam": torchcam.methods.ScoreCAM,
}


class Hooked(nn.Module):
    """The network with its last activation map passing a module that the peers can hook."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.last = network, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network.head(self.last(self.network.features(x)).mean((2, 3)))  # type: ignore[operator]
        return logits


def trained(name: str, seconds: float) -> tuple[nn.Module, LabelledImages]:
    """A network after so many seconds of training on the embedded data, and validation images to explain."""
    config = TrialConfig(name, 1000, 0.05, batch_size=32, schedule="constant", amp="none")
    dataset = open_dataset(config.data)
    torch.manual_seed(0)
    network = build(name, dataset.n_classes)
    optimizer = make_optimizer(network, config)
    images = LabelledImages.of(dataset, dataset.train)
    start, epoch = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        part = slice((epoch * 256) % len(images), (epoch * 256) % len(images) + 256)
        train_epoch(network, optimizer, images[part], config, epoch)
        epoch += 1
    return network.eval(), LabelledImages.of(dataset, dataset.validation, 64)


class Case:
    """One network and its images; ``batches`` are made of ``n`` images."""

    def __init__(self, name: str, seconds: float) -> None:
        self.network, self.images = trained(name, seconds)
        self.labels = self.images.labels_N
        self.shift, self.scale = self.images.shift_and_scale(torch.device("cpu"))
        self.x = (self.images.pixels_NCHW.float() / 255 - self.shift) / self.scale
        self.hooked = Hooked(self.network).eval()
        self.inference = folded(self.network)

    def ours(self, methods: tuple[str, ...], n: int) -> dict[str, Tensor]:
        return saliency_maps(self.network, self.x[:n], self.labels[:n], methods, inference=self.inference).maps

    def grad_cam_library(self, methods: tuple[str, ...], n: int) -> dict[str, Tensor]:
        """pytorch-grad-cam, without its resizing to the image, which is not compared."""
        targets = [ClassifierOutputTarget(int(c)) for c in self.labels[:n]]
        found = {}
        for method in methods:
            with PGC[method](self.hooked, [self.hooked.last]) as cam, contextlib.redirect_stderr(io.StringIO()):
                cam.get_target_width_height = lambda x: None
                found[method] = torch.from_numpy(np.asarray(cam(self.x[:n], targets)))
        return found

    def torchcam(self, methods: tuple[str, ...], n: int) -> dict[str, Tensor]:
        found = {}
        for method in methods:
            with TORCHCAM[method](self.hooked, self.hooked.last, input_shape=(3, 32, 32)) as cam:
                logits = self.hooked(self.x[:n].clone().requires_grad_())
                found[method] = cam(self.labels[:n].tolist(), logits)[0].detach()
        return found

    def bound(self, n: int) -> None:
        """Score-CAM's arithmetic: the folded network on as many images as there are channels that show something."""
        with torch.no_grad():
            a = self.inference.features(self.x[:n])  # type: ignore[operator]
            active = int((a.amax((2, 3)) > a.amin((2, 3))).sum())
            x = self.x[:1].expand(TOGETHER, -1, -1, -1).contiguous(memory_format=torch.channels_last)
            for start in range(0, active, TOGETHER):
                self.inference(x[: min(TOGETHER, active - start)])

    def active(self, n: int) -> float:
        with torch.no_grad():
            a = self.inference.features(self.x[:n])  # type: ignore[operator]
            return float((a.amax((2, 3)) > a.amin((2, 3))).float().mean())

    def our_table(self, n: int) -> dict[str, float]:
        """AD, AI, AG, insertion and deletion of the three gradient CAMs and Ablation-CAM, and nothing else."""
        protocol = PROTOCOLS["paper"]
        x, labels = self.x[:n].contiguous(memory_format=torch.channels_last), self.labels[:n]
        with torch.no_grad():
            found = saliency_maps(self.network, x, labels, TABLE, inference=self.inference)
            blurred, hidden = gaussian_blur(x, protocol.blur_kernel, protocol.blur_sigma), torch.zeros_like(x)
            batch = Batch(
                x, self.images[:n].pixels_NCHW.float() / 255, blurred, hidden, labels, found.logits,
                self.inference(blurred), self.inference(hidden[:1]).expand(n, -1), self.shift, self.scale,
                over_blur=False,
            )  # fmt: skip
            columns = score_batch(self.inference, batch, found.maps, protocol)
        return {name: float(values.mean()) for name, values in columns.items()}

    def controls(self, n: int) -> dict[str, Callable[[], Any]]:
        """What the evaluator does beside the table, for the same methods and images."""
        with torch.no_grad():
            temperature = fit_temperature(self.inference(self.x), self.labels)
        config = EvaluationConfig(methods=TABLE, images=None, batch_size=n)
        scored = ScoredNetwork(self.network, self.images[:n], config, temperature)
        first = first_pass(scored)
        sources = {**first.maps, REFERENCE_MAPS: first.reference}
        x = self.x[:n].contiguous(memory_format=torch.channels_last)
        kept = torch.cat([deletion.single_deletions().expand(n, -1, -1), first.halves], 1)

        def agree() -> None:
            with torch.no_grad():
                deletion.masked_logits(scored.calibrated, x, torch.zeros_like(x), kept, first.target)
            agreements(first, sources)

        return {"agreements": agree, "masking excess": lambda: masking_excess(scored, first, sources, images=n)}

    def peers_table(self, n: int) -> dict[str, float]:
        """The same from the peers: drop and increase by pytorch-grad-cam, insertion and deletion by torchcam."""
        x, labels = self.x[:n], self.labels[:n].tolist()
        targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in labels]
        for method in TABLE:
            with PGC[method](self.hooked, [self.hooked.last]) as cam, contextlib.redirect_stderr(io.StringIO()):
                maps = cam(x, [ClassifierOutputTarget(int(c)) for c in labels])
            DropInConfidence()(x, maps, targets, self.hooked)
            IncreaseInConfidence()(x, maps, targets, self.hooked)
        softmax = partial(torch.softmax, dim=-1)
        for method in CAMS:
            with TORCHCAM[method](self.hooked, self.hooked.last, input_shape=(3, 32, 32)) as cam:
                metric = DeletionInsertionMetric(cam, softmax, steps=4)
                metric.update(x.clone().requires_grad_(), labels)
                metric.summary()
        return {}


def agreement(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    """Largest difference of min-max scaled maps; NaN where every map is constant."""
    worst = {}
    for method, peer in theirs.items():
        mine = ours[method]
        low, high = mine.amin((1, 2), keepdim=True), mine.amax((1, 2), keepdim=True)
        scaled = (mine - low) / (high - low)
        usable = scaled.isfinite().all(2).all(1)
        worst[method] = float((scaled - peer)[usable].abs().max()) if usable.any() else float("nan")
    return ", ".join(f"{m} {v:.0e}" for m, v in worst.items())


def interleaved(variants: dict[str, Callable[[], Any]], rounds: int, order: random.Random) -> dict[str, list[float]]:
    """Seconds of every variant, one per round after a first that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 1):
        for name in order.sample(list(variants), len(variants)):
            start = time.perf_counter()
            variants[name]()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(name: str, case: Case, rounds: int, order: random.Random) -> dict[str, float]:
    """Measure and print one network's comparisons; the ratios of the JSON line."""
    print(f"\n{name}: {100 * case.active(8):.0f} % of the last map's channels show something")
    print(f"{'comparison':<44}{'ratio':>8}{'quartiles':>18}{'ours ms':>10}{'other ms':>10}   agreement")
    groups = [  # label of ours, ours, images, others: key, label, call, rounds
        ("three gradient CAMs", lambda n: case.ours(CAMS, n), 16,
         [("gradient_cams_vs_pytorch_grad_cam", "pytorch-grad-cam", lambda n: case.grad_cam_library(CAMS, n)),
          ("gradient_cams_vs_torchcam", "torchcam", lambda n: case.torchcam(CAMS, n))], rounds),
        ("Ablation-CAM", lambda n: case.ours(("ablation_cam",), n), 1,
         [("ablation_cam_vs_pytorch_grad_cam", "pytorch-grad-cam",
           lambda n: case.grad_cam_library(("ablation_cam",), n))],
         max(3, rounds // 2)),
        ("Score-CAM", lambda n: case.ours(("score_cam",), n), 1,
         [("score_cam_vs_bound", "bound", case.bound),
          ("score_cam_vs_torchcam", "torchcam", lambda n: case.torchcam(("score_cam",), n)),
          ("score_cam_vs_pytorch_grad_cam", "pytorch-grad-cam", lambda n: case.grad_cam_library(("score_cam",), n))],
         rounds),
        ("table without Score-CAM", case.our_table, 4,
         [("table_vs_peers", "peers", case.peers_table)], max(3, rounds // 2)),
    ]  # fmt: skip
    ratios: dict[str, float] = {}
    for label, ours, n, others, times in groups:
        calls = {"ours": partial(ours, n), **{key: partial(call, n) for key, _, call in others}}
        mine = ours(n)
        seconds = interleaved(calls, times, order)
        for key, peer, call in others:
            each = [b / a for a, b in zip(seconds["ours"], seconds[key], strict=True)]
            low, ratios[key], high = statistics.quantiles(each, n=4)
            milliseconds = [1000 * statistics.median(seconds[k]) / n for k in ("ours", key)]
            theirs = call(n)
            said = agreement(mine, theirs) if theirs else ""
            print(
                f"{label + ' vs ' + peer:<44}{ratios[key]:>8.2f}{f'{low:.2f} to {high:.2f}':>18}"
                f"{milliseconds[0]:>10.2f}{milliseconds[1]:>10.2f}   {said}"
            )
    report_controls(case, max(3, rounds // 2), order)
    return {key: round(value, 3) for key, value in ratios.items()}


def report_controls(case: Case, rounds: int, order: random.Random, n: int = 4) -> None:
    """Print what the evaluator's controls cost, in units of the table of the same methods and images."""
    seconds = interleaved({"table": partial(case.our_table, n), **case.controls(n)}, rounds, order)
    for name in seconds:
        if name != "table":
            each = [c / t for c, t in zip(seconds[name], seconds["table"], strict=True)]
            low, middle, high = statistics.quantiles(each, n=4)
            milliseconds = [1000 * statistics.median(seconds[k]) / n for k in (name, "table")]
            print(
                f"{f'control: {name}, of the table':<44}{middle:>8.2f}{f'{low:.2f} to {high:.2f}':>18}"
                f"{milliseconds[0]:>10.2f}{milliseconds[1]:>10.2f}"
            )


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.faithfulness", description=__doc__.splitlines()[0])
    add = parse.add_argument
    add("--networks", nargs="+", default=["resnet18", "mobilenet_v2"], metavar="NETWORK")
    add("--rounds", type=int, default=7)
    add("--train-seconds", type=float, default=60.0, help="training of each network before it is explained")
    add("--threads", type=int, default=2, help="CPU threads")
    return parse


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    order = random.Random(0)
    print(f"torch {torch.__version__} · {platform.machine()} CPU · {arguments.threads} threads · ms per image")
    ratios = {}
    for name in arguments.networks:
        ratios[name] = report(name, Case(name, arguments.train_seconds), arguments.rounds, order)
    print(json.dumps(ratios))
    return 0


if __name__ == "__main__":
    sys.exit(main())
