"""Is the regularized step right on this device? ``python -m benchmarks.check``, before any speed is measured.

Needs torch and torchvision only. Every line is one check, with what was measured and what is allowed; the exit code
is 1 where one failed. In float64 all must agree to nine digits. In lower precision an untrained deep network moves
far by rounding alone (MobileNet-V2 in float32: the second digit after eight steps), so there a result may be
:data:`AS_GOOD` times as far from the exact one as what it is compared with, as FlashAttention's tests have it (Dao et
al. 2022), or within a fixed bound where that is larger.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import stock
from study.config import NETWORKS, REG_ERRORS, REG_GRADIENTS, TrialConfig
from study.data.labelled import LabelledImages
from study.networks import build
from study.networks.guided import input_gradients
from study.training.engine import Step, make_step
from study.training.loop import make_optimizer, train_epoch
from study.training.regularizer import regularized_step

CLASSES, IMAGES, SIDE, STEPS = 10, 8, 16, 20
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

AS_GOOD = 3.0

#: What is compared, the largest deviation found, and the largest allowed.
Finding = tuple[str, float, float]


def case(name: str, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    network = build(name, CLASSES).to(device, dtype).to(memory_format=torch.channels_last)
    x = torch.randn(IMAGES, 3, SIDE, SIDE).to(device, dtype, memory_format=torch.channels_last)
    return network, x, torch.randint(0, CLASSES, (IMAGES,)).to(device)


def deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors, relative to the largest norm: some are zero in theory."""
    with torch.no_grad():
        scale = max(float(e.norm()) for e in expected)
        return max(float((f - e).norm()) for f, e in zip(found, expected, strict=True)) / scale


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad for p in network.parameters() if p.grad is not None]


def input_gradients_of(name: str, device: torch.device) -> Iterator[Finding]:
    """Against stock autograd with rectifiers of its own, in float64."""
    network, x, y = case(name, device, torch.float64)
    network.eval()
    twin = stock.guidable(network)
    for what, guided, found in zip(("standard", "guided"), (False, True), input_gradients(network, x, y), strict=True):
        leaf = x.clone().requires_grad_()
        twin.guided[0] = guided  # type: ignore[index, operator]
        loss = nn.functional.cross_entropy(twin(leaf), y, reduction="sum")
        (expected,) = torch.autograd.grad(loss, leaf)
        yield f"{name}: {what} input gradient", deviation([found], [expected]), 1e-9


def parameter_gradients_of(name: str, device: torch.device) -> Iterator[Finding]:
    """Against stock double backpropagation, in float64, train mode."""
    for error in REG_ERRORS:
        network, x, y = case(name, device, torch.float64)
        twin = stock.guidable(network)
        regularized_step(network, x, y, error=error, weight=3.0)
        stock.one_forward(twin, x, y, 3.0, None, error)
        yield f"{name}: parameter gradients, {error}", deviation(gradients(network), gradients(twin)), 1e-9
    for through in REG_GRADIENTS[1:]:
        network, x, y = case(name, device, torch.float64)
        twin = copy.deepcopy(network)
        regularized_step(network, x, y, error="cosine", weight=3.0, through=through)
        stock.by_statistics(twin, x, y, 3.0, through)
        yield f"{name}: parameter gradients, {through}", deviation(gradients(network), gradients(twin)), 1e-9


def trajectory(name: str, device: torch.device, step: Step, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Losses of some steps of SGD; every fourth is regularized, so that both kinds are recorded."""
    network, x, y = case(name, device, dtype)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    losses = []
    for i in range(8):
        optimizer.zero_grad(set_to_none=True)
        found = step(network, x + 0.1 * i, y, error="cosine", weight=0.1 + 0.1 * i if i % 4 == 0 else 0.0, **options)
        losses.append(found.loss)
        optimizer.step()
    return [tensor.double() for tensor in (*losses, *network.buffers())]


def _engines(device: torch.device) -> tuple[str, ...]:
    return ("eager", "fused", "graph") if device.type == "cuda" else ("eager", "fused")


def engines_of(name: str, device: torch.device) -> Iterator[Finding]:
    """Losses and running statistics of every engine, against the eager one in float64."""
    for through in REG_GRADIENTS:
        exact = trajectory(name, device, make_step("eager", device), torch.float64, through=through)
        rounded = deviation(trajectory(name, device, make_step("eager", device), torch.float32, through=through), exact)
        for dtype, allowed in ((torch.float64, 1e-9), (torch.float32, max(1e-4, AS_GOOD * rounded))):
            for engine in _engines(device)[1:]:
                found = trajectory(name, device, make_step(engine, device), dtype, through=through)
                yield f"{name}: {through}, engine {engine}, {str(dtype)[6:]}", deviation(found, exact), allowed


def reduced_precision_of(name: str, device: torch.device) -> Iterator[Finding]:
    """The direction of all parameters' gradient, against float64; stock autograd's in bfloat16 is the yardstick."""
    network, x, y = case(name, device, torch.float64)
    regularized_step(network, x, y, error="mse", weight=1.0)
    exact = torch.cat([g.flatten() for g in gradients(network)])

    def turned(of: nn.Module) -> float:
        found = torch.cat([g.flatten() for g in gradients(of)]).double()
        return 1 - float(nn.functional.cosine_similarity(exact, found, dim=0))

    network, x, y = case(name, device, torch.float32)
    twin = stock.guidable(network)
    stock.one_forward(twin, x, y, 1.0, torch.bfloat16, "mse")
    for dtype, allowed in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        ours = copy.deepcopy(network)
        regularized_step(ours, x, y, error="mse", weight=1.0, dtype=dtype)
        limit = max(allowed, (1.5 if dtype == torch.bfloat16 else 1.0) * turned(twin))
        yield f"{name}: 1 - cos of the gradient, {str(dtype)[6:]}", turned(ours), limit


def plain_of(name: str, device: torch.device) -> Iterator[Finding]:
    """Lambda 0 is plain training: weights after some steps. Images lie in another order within a batch."""
    config = TrialConfig(
        name,
        STEPS,
        1e-2,
        batch_size=IMAGES,
        crop_padding=0,
        flip=False,
        schedule="constant",
        warmup_epochs=0,
        amp="none",
    )
    pixels = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8).to(device)
    ours, _, labels = case(name, device, torch.float32)
    images = LabelledImages(pixels, labels, MEAN, STD)
    theirs, turned = copy.deepcopy(ours), copy.deepcopy(ours)
    optimizer = make_optimizer(ours, config)
    for epoch in range(STEPS):
        train_epoch(ours, optimizer, images, config, epoch)
    x = images.normalized()
    _train_stock(theirs, x, labels)
    _train_stock(turned, x.flip(0), labels.flip(0))
    found, expected, other = (list(n.parameters()) for n in (ours, theirs, turned))
    allowed = max(1e-4, AS_GOOD * deviation(other, expected))
    yield f"{name}: lambda 0 against plain training", deviation(found, expected), allowed


def _train_stock(network: nn.Module, x: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()


def waits_of(name: str, device: torch.device) -> Iterator[Finding]:
    """CUDA raises at whatever makes the host wait between the first step and the last."""
    if device.type != "cuda":
        return
    pixels = torch.randint(0, 256, (8 * IMAGES, 3, SIDE, SIDE), dtype=torch.uint8).to(device)
    images = LabelledImages(pixels, torch.randint(0, CLASSES, (8 * IMAGES,)).to(device), MEAN, STD)
    for engine in _engines(device):
        config = TrialConfig(name, 2, 0.01, 0.1, "cosine", 2, IMAGES, rotation=15, clip_norm=1.0, engine=engine)
        network, _, _ = case(name, device, torch.float32)
        optimizer, step = make_optimizer(network, config), make_step(engine, device)

        def watch(done: int, of: int) -> None:
            # Compiling and recording wait, and both are over after two steps of either kind.
            torch.cuda.set_sync_debug_mode("error" if 4 <= done < of else "default")

        waited = 0.0
        try:
            for epoch in range(2):
                train_epoch(network, optimizer, images, config, epoch, step_with=step, on_step=watch)
        except RuntimeError as error:
            print(f"     {error}")
            waited = 1.0
        finally:
            torch.cuda.set_sync_debug_mode("default")
        yield f"{name}: steps that wait for the device, {engine}", waited, 0.0


CHECKS = (input_gradients_of, parameter_gradients_of, engines_of, reduced_precision_of, plain_of, waits_of)


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__.splitlines()[0])
    parse.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NETWORK")
    parse.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parse


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    device = torch.device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__} · {where}")
    failed = 0
    for name in arguments.networks:
        for check in CHECKS:
            for what, found, allowed in check(name, device):
                good = found <= allowed  # not so for NaN
                failed += not good
                print(f"{'ok  ' if good else 'FAIL'} {what:<60} {found:.1e}  (at most {allowed:.0e})", flush=True)
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
