"""What a regularized training step costs, in plain steps of the same network: ``python -m benchmarks.step``.

All variants take turns in one process, in an order that is shuffled every round, so that a slow moment of a shared
machine hits all of them; ratios are taken within a round. The table ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import stock
from study.config import NETWORKS, REG_GRADIENTS
from study.networks import build
from study.training.engine import make_step
from study.training.regularizer import regularized_step

CLASSES, WEIGHT, LAZY = 100, 7.5e-3, 4
DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
#: In the order of the table. ``plain`` is what all others are divided by.
VARIANTS = (
    "plain", "ours", "ours_constant", "ours_inference", "ours_lazy4", "stock_one_forward", "stock_two_forwards",
    "gradient_norm", "smoothgrad",
)  # fmt: skip
ENGINE_VARIANTS = ("ours_fused", "ours_graph", "constant_graph", "inference_graph", "plain_graph")
REPORTED = ("ours", "ours_constant", "ours_inference", "ours_lazy4", "stock_one_forward", "stock_two_forwards")
#: The arithmetic of a step in forward passes; of the other variants only the time is comparable.
FORWARDS = {
    "plain": 3, "plain_graph": 3, "ours": 7, "ours_fused": 7, "ours_graph": 7, "ours_constant": 7, "constant_graph": 7,
    "ours_inference": 10, "inference_graph": 10,
}  # fmt: skip
WHAT = {
    "plain": "cross-entropy alone, stock autograd, the network as torchvision builds it",
    "ours": "L = L_C + lambda L_R, exact, this package",
    "ours_constant": "the same with batch-norm's statistics as constants in the input gradient",
    "ours_inference": "the same with the input gradient of inference, from a forward pass of its own",
    "ours_fused": "ours with batch-norm's pointwise chains compiled",
    "ours_graph": "ours, recorded as a CUDA graph",
    "constant_graph": "ours_constant, recorded as a CUDA graph",
    "inference_graph": "ours_inference, recorded as a CUDA graph",
    "plain_graph": "the plain step, recorded as a CUDA graph",
    "ours_lazy4": f"the same with reg_interval {LAZY}: mean of {LAZY} steps",
    "stock_one_forward": "the same loss, one shared forward pass, stock autograd",
    "stock_two_forwards": "the same loss, a second forward pass for the guided gradient, stock autograd",
    "gradient_norm": "context: penalty on the input gradient's norm (Drucker & LeCun), stock autograd",
    "smoothgrad": f"context: alignment with a mean of {stock.NOISY} noisy gradients (SmoothGrad), stock autograd",
}


class Case:
    """One network, one batch, and every variant's step on it."""

    def __init__(self, name: str, batch_size: int, device: torch.device, dtype: torch.dtype | None) -> None:
        torch.manual_seed(0)
        self._n, self._dtype, self._device = batch_size, dtype, device
        network = build(name, CLASSES).to(device).to(memory_format=torch.channels_last)
        self._network = {
            variant: copy.deepcopy(network) for variant in ("plain", "ours", "ours_constant", "ours_inference")
        }
        self._network["one"] = stock.guidable(network)
        self._network["two"], self._guided = stock.plain_and_guided(network)
        self._steps = {"ours_fused": make_step("fused", device)}
        self._network["ours_fused"] = self._network["ours"]
        if device.type == "cuda":
            for variant in ENGINE_VARIANTS[1:]:
                self._steps[variant], self._network[variant] = make_step("graph", device), copy.deepcopy(network)
        self._x = torch.randn(batch_size, 3, 32, 32).to(device, memory_format=torch.channels_last)
        self._y = torch.randint(0, CLASSES, (batch_size,)).to(device)

    def step(self, variant: str) -> None:
        """Gradients of one batch, as the variant computes them; for the lazy one, of ``LAZY`` batches."""
        x, y, dtype = self._x, self._y, self._dtype
        if variant in ("ours", "ours_constant", "ours_inference", "plain", *ENGINE_VARIANTS):
            self._regularized(variant, 0.0 if variant.startswith("plain") else WEIGHT)
        elif variant == "ours_lazy4":
            for i in range(LAZY):
                self._regularized("ours", LAZY * WEIGHT if i == 0 else 0.0)
        elif variant == "stock_one_forward":
            stock.one_forward(self._network["one"], x, y, WEIGHT, dtype)
        elif variant == "stock_two_forwards":
            stock.two_forwards(self._network["two"], self._guided, x, y, WEIGHT, dtype)
        elif variant == "gradient_norm":
            stock.gradient_norm(self._network["plain"], x, y, WEIGHT, dtype)
        else:
            stock.smoothgrad(self._network["plain"], x, y, WEIGHT, dtype)

    def _regularized(self, variant: str, weight: float) -> None:
        network, step = self._network[variant], self._steps.get(variant, regularized_step)
        network.zero_grad()
        through = next((name for name in REG_GRADIENTS if name in variant), "batch")
        step(network, self._x, self._y, error="cosine", weight=weight, through=through, dtype=self._dtype)

    def seconds(self, variant: str) -> float:
        """Wall clock of one step, the device's work included."""
        synchronize(self._device)
        start = time.perf_counter()
        self.step(variant)
        synchronize(self._device)
        return (time.perf_counter() - start) / (LAZY if variant == "ours_lazy4" else 1)

    def forward_flops(self) -> int:
        """Multiply-adds of one forward pass, times two."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self._network["plain"](self._x)
        return int(counter.get_total_flops())

    def peak_bytes(self, variant: str) -> int:
        """Memory that steps need beyond network and batch: the largest of two."""
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forget the resident peak so far
        before = torch.cuda.memory_allocated() if cuda else _resident("VmRSS")
        self.step(variant)
        self.step(variant)
        return (torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")) - before


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def matrix_peak(device: torch.device, dtype: torch.dtype | None) -> float:
    """Floating-point operations a second of a large matrix product, the best of ten."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype or torch.float32)
    times = []
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def measure(case: Case, variants: tuple[str, ...], rounds: int) -> dict[str, list[float]]:
    """Seconds per step of every variant, one per round."""
    order = random.Random(0)
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for i in range(rounds + 2):
        for variant in order.sample(variants, len(variants)):
            taken = case.seconds(variant)
            if i >= 2:  # the first rounds choose algorithms and fill caches
                seconds[variant].append(taken)
    return seconds


def memory_of(arguments: argparse.Namespace, name: str, variant: str) -> int | None:
    """Peak bytes of one variant, measured in a process of its own; None where it cannot be told."""
    command = [sys.executable, "-m", "benchmarks.step", "--peak-memory", variant, "--networks", name]
    command += ["--batch-size", str(arguments.batch_size), "--dtype", arguments.dtype, "--device", arguments.device]
    command += ["--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def report(arguments: argparse.Namespace, name: str, device: torch.device, peak: float) -> dict[str, float]:
    """Measure one network and print its table."""
    case = Case(name, arguments.batch_size, device, DTYPES[arguments.dtype])
    variants = chosen(arguments, device)
    seconds = measure(case, variants, arguments.rounds)
    flops = case.forward_flops()
    del case
    memory = {v: memory_of(arguments, name, v) for v in variants if v != "ours_lazy4"} if arguments.memory else {}
    print(f"\n{name} · batch {arguments.batch_size} · {arguments.dtype} · channels_last · {arguments.rounds} rounds")
    print(f"{'variant':<20}{'ratio':>8}{'quartiles':>16}{'ms/step':>10}{'images/s':>10}{'memory':>9}{'of peak':>9}")
    ratios: dict[str, float] = {}
    for variant in variants:
        each = [a / b for a, b in zip(seconds[variant], seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4)
        ratios[variant] = middle
        typical = statistics.median(seconds[variant])
        used = FORWARDS.get(variant, 0)
        of_peak = f"{100 * used * flops / typical / peak:.0f} %" if used else ""
        bytes_, base = memory.get(variant), memory.get("plain")
        of_plain = f"{bytes_ / base:.2f}x" if bytes_ and base else ""
        print(
            f"{variant:<20}{middle:>8.2f}{f'{low:.2f} to {high:.2f}':>16}{1000 * typical:>10.1f}"
            f"{arguments.batch_size / typical:>10.0f}{of_plain:>9}{of_peak:>9}"
        )
    return {variant: round(ratios[variant], 3) for variant in REPORTED}


def chosen(arguments: argparse.Namespace, device: torch.device) -> tuple[str, ...]:
    """The variants that were asked for and that the device can run."""
    engines = ENGINE_VARIANTS if device.type == "cuda" else ENGINE_VARIANTS[:1]
    context = VARIANTS[-2:]
    return (*VARIANTS[:-2], *(engines if arguments.engines else ()), *(context if arguments.context else ()))


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    add = parse.add_argument
    add("--networks", nargs="+", default=["resnet18", "mobilenet_v2"], choices=list(NETWORKS), metavar="NETWORK")
    add("--batch-size", type=int, default=64)
    add("--rounds", type=int, default=9)
    add("--dtype", default="float32", choices=list(DTYPES))
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=2, help="CPU threads")
    add("--context", action="store_true", help="gradient-norm and SmoothGrad-style penalties too")
    add("--engines", action="store_true", help="compiled and recorded steps too")
    add("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    add("--peak-memory", choices=(*VARIANTS, *ENGINE_VARIANTS), help=argparse.SUPPRESS)
    return parse


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.peak_memory:
        case = Case(arguments.networks[0], arguments.batch_size, device, DTYPES[arguments.dtype])
        print(case.peak_bytes(arguments.peak_memory))
        return 0
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    peak = matrix_peak(device, DTYPES[arguments.dtype])
    print(f"torch {torch.__version__} · {where} · {arguments.threads} threads · peak {peak / 1e12:.2f} TFLOP/s")
    for variant in chosen(arguments, device):
        print(f"  {variant:<20}{WHAT[variant]}")
    ratios = {name: report(arguments, name, device, peak) for name in arguments.networks}
    print(json.dumps(ratios))
    return 0


if __name__ == "__main__":
    sys.exit(main())
