"""One epoch of training on images that live on the device. The host never waits for a step.

Everything random in an epoch (order, augmentation, dropout) is drawn from seeds made of the trial's seed and the epoch,
so a training that is resumed between epochs needs no generator state and equals an uninterrupted one; bit for bit on
the same CPU with the same number of threads.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from study.config import TrialConfig
from study.data.augment import augment, normalize
from study.errors import InputError
from study.training.engine import Step
from study.training.regularizer import StepLoss, regularized_step
from study.training.schedule import learning_rate, regularizer_weight, steps_per_epoch


@dataclass(frozen=True)
class EpochResult:
    """One epoch's averages over its images, as trained on (augmented, weights as they moved).

    ``loss`` (L), ``classification`` (L_C) in nats, ``regularization`` (L_R) or None where lambda is 0, ``accuracy`` in
    percent, ``lr`` of the last step, ``seconds`` of wall clock. ``finite``: no loss and no gradient's norm was infinite
    or NaN; where it is False the weights are those from before the first such step, while batch-norm's running
    statistics may be spoiled, so the network is not to be used.
    """

    loss: float
    classification: float
    regularization: float | None
    accuracy: float
    lr: float
    seconds: float
    finite: bool


def make_optimizer(network: nn.Module, config: TrialConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum and weight decay on all that trains, for a network that is on its device.

    A parameter group trains at its ``lr_multiple`` of the rate; where ``norm_lr_multiple`` is 1 there is one group.
    Momentum starts as zeros, which equals torch's first step and makes the state the same at any moment.
    """
    norms = set(_norm_parameters(network)) if config.norm_lr_multiple != 1 else set()
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if (p in norms) == is_norm], "lr_multiple": multiple}
        for is_norm, multiple in ((False, 1.0), (True, config.norm_lr_multiple))
    ]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
        fused=True,
    )
    if config.momentum > 0:
        for parameter in _parameters(optimizer):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of normalization layers."""
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    return [p for module in network.modules() if isinstance(module, norms) for p in module.parameters(recurse=False)]


def _parameters(optimizer: torch.optim.SGD) -> list[nn.Parameter]:
    """All that it trains, over its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.SGD,
    images_NCHW_uint8: Tensor,
    labels_N: Tensor,
    config: TrialConfig,
    epoch: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    *,
    step_with: Step = regularized_step,
    on_step: Callable[[int, int], None] | None = None,
) -> EpochResult:
    """Train on every image once; ``epoch`` counts from 0. The network is left in train mode.

    Images (N, 3, H, W, uint8) and labels (N, int64) are on the network's device; ``mean`` and ``std`` in units of a
    pixel in [0, 1]. ``step_with``: of :func:`study.training.engine.make_step`. ``on_step(done, of)`` is
    called after a batch was handed to the device. torch's global random state is left as it was.

    A batch whose loss or gradient is not finite changes no weight, nor does any batch after it; that is found out at
    the epoch's end (``finite``), without waiting in between.

    Raises :class:`InputError` where there are no images or bfloat16 is asked of a device without it; ``ValueError``
    where images and labels differ in number or ``epoch`` is outside the training.
    """
    n, device = images_NCHW_uint8.shape[0], images_NCHW_uint8.device
    steps = _check(n, labels_N, config, epoch)
    dtype = _compute_dtype(config, device)
    parameters = _parameters(optimizer)
    generator = torch.Generator(device).manual_seed(_seed(config, epoch, "augment"))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(_seed(config, epoch, "order"))).to(device)
    scale = torch.tensor((mean, std), device=device)
    totals = _Totals(device)
    bad = torch.zeros((), device=device)
    lr = config.lr
    network.train()
    start = time.perf_counter()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_seed(config, epoch, "dropout"))
        for step in range(steps):
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            weight = regularizer_weight(config, epoch * steps + step, steps)
            x_NCHW, labels = _batch(images_NCHW_uint8, labels_N, rows, generator, config, scale)
            optimizer.zero_grad(set_to_none=True)
            # Batch-norm needs two images; of a short last batch fewer parts are made.
            parts = min(config.accumulate, max(1, len(rows) // 2))
            loss = torch.zeros((), device=device)
            for x, y in zip(x_NCHW.tensor_split(parts), labels.tensor_split(parts), strict=True):
                losses = step_with(
                    network,
                    x,
                    y,
                    error=config.reg_error,
                    weight=weight,
                    through=config.reg_gradient,
                    label_smoothing=config.label_smoothing,
                    share=len(y) / len(rows),
                    dtype=dtype,
                )
                loss = loss + losses.loss
                totals.add(losses, y)
            lr = learning_rate(config, epoch * steps + step, steps)
            _update(optimizer, parameters, loss, lr, config.clip_norm, bad)
            if on_step is not None:
                on_step(step + 1, steps)
    optimizer.zero_grad(set_to_none=True)
    loss_mean, classification, regularization, accuracy = totals.means()  # waits for the device: once an epoch
    return EpochResult(
        loss=loss_mean,
        classification=classification,
        regularization=regularization,
        accuracy=accuracy,
        lr=lr,
        seconds=time.perf_counter() - start,
        finite=bad.item() == 0,
    )


class _Totals:
    """Sums over an epoch's images, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)  # of L, L_C, L_R, correct
        self._images = self._regularized = 0

    def add(self, losses: StepLoss, labels_N: Tensor) -> None:
        n, zero = len(labels_N), torch.zeros_like(losses.loss)
        regularization = zero if losses.regularization is None else losses.regularization
        self._sums[:3] += n * torch.stack((losses.loss, losses.classification, regularization)).double()
        self._sums[3] += (losses.logits.argmax(1) == labels_N).sum()
        self._images += n
        self._regularized += 0 if losses.regularization is None else n

    def means(self) -> tuple[float, float, float | None, float]:
        """L and L_C in nats, L_R over the images that it was measured on (None: none), accuracy in percent."""
        loss, classification, regularization, correct = self._sums.tolist()
        n = self._images
        of_regularized = regularization / self._regularized if self._regularized else None
        return loss / n, classification / n, of_regularized, 100 * correct / n


def _check(n: int, labels_N: Tensor, config: TrialConfig, epoch: int) -> int:
    """Batches of the epoch, once its arguments are known to be good."""
    if n == 0:
        raise InputError("there are no training images", key="data")
    if labels_N.shape != (n,):
        raise ValueError(f"{n} images have labels of shape {tuple(labels_N.shape)}")
    if not 0 <= epoch < config.epochs:
        raise ValueError(f"epoch {epoch} is not in [0, {config.epochs})")
    return steps_per_epoch(n, config.batch_size)


def _compute_dtype(config: TrialConfig, device: torch.device) -> torch.dtype | None:
    supported = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(False))
    if config.amp == "bf16" and not supported:
        raise InputError(f"{device} has no bfloat16; use amp fp16, none or auto", key="amp")
    if config.amp == "fp16":
        return torch.float16
    if config.amp == "bf16" or (config.amp == "auto" and device.type == "cuda" and supported):
        return torch.bfloat16
    return None


def _seed(config: TrialConfig, epoch: int, purpose: str) -> int:
    """Seeds of different trials, epochs and purposes are unrelated, unlike sums of them."""
    digest = hashlib.sha256(f"{config.seed}/{epoch}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _batch(
    images_NCHW_uint8: Tensor,
    labels_N: Tensor,
    rows: Tensor,
    generator: torch.Generator,
    config: TrialConfig,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    batch = augment(
        images_NCHW_uint8[rows],
        generator,
        padding=config.crop_padding,
        mode=config.crop_mode,
        flip=config.flip,
        rotation=config.rotation,
    )
    x_NCHW = normalize(batch, *scale).contiguous(memory_format=torch.channels_last)  # a fifth faster, on a CPU too
    return x_NCHW, labels_N[rows]


def _update(
    optimizer: torch.optim.SGD,
    parameters: list[nn.Parameter],
    loss: Tensor,
    lr: float,
    clip_norm: float | None,
    bad: Tensor,
) -> None:
    """One optimizer step, skipped on the device once ``bad`` is set; ``bad`` is set here and never cleared.

    The norm tells of non-finite gradients in one number. It overflows float32 above 1e19 to 1e38: diverged as well.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm, foreach=True)
    torch.maximum(bad, (~(loss.isfinite() & norm.isfinite())).to(bad.dtype), out=bad)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_multiple", 1.0)
    # The fused kernel reads found_inf on the device and leaves weights and momentum alone where it is 1.
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
