"""One epoch of training on images in the device's memory. The host never waits for a step.

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
from study.data.labelled import LabelledImages
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
    """SGD with Nesterov momentum and weight decay on all trainable parameters, for a network that is on its device.

    A parameter group trains at its ``lr_multiple`` of the rate; where ``norm_lr_multiple`` is 1 there is one group.
    Momentum starts as zeros: torch's first step is the same, and a checkpoint always has the same tensors.
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
    """The parameters of all its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.SGD,
    images: LabelledImages,
    config: TrialConfig,
    epoch: int,
    *,
    step_with: Step = regularized_step,
    on_step: Callable[[int, int], None] | None = None,
) -> EpochResult:
    """Train on every image once; ``epoch`` counts from 0. The network is left in train mode.

    ``images`` are on the network's device. ``step_with``: a step of :func:`study.training.engine.make_step`.
    ``on_step(done, of)`` is called after a batch was handed to the device. torch's global random state is left as it
    was.

    A batch whose loss or gradient is not finite changes no weight, nor does any batch after it. The host learns of it
    at the epoch's end (``finite``).

    Raises :class:`InputError` where there are no images or bfloat16 is asked of a device without it; ``ValueError``
    where images and labels differ in number or ``epoch`` is outside the training.
    """
    device = images.pixels_NCHW.device
    steps = _check(images, config, epoch)
    dtype = _compute_dtype(config, device)
    parameters = _parameters(optimizer)
    generator = torch.Generator(device).manual_seed(_seed(config, epoch, "augment"))
    shuffle = torch.Generator().manual_seed(_seed(config, epoch, "order"))
    order = torch.randperm(len(images), generator=shuffle).to(device)
    scale = torch.tensor((images.mean, images.std), device=device)
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
            x_NCHW, labels = _batch(images, rows, generator, config, scale)
            optimizer.zero_grad(set_to_none=True)
            # Batch-norm needs two images a part: a short last batch has fewer parts.
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


def _check(images: LabelledImages, config: TrialConfig, epoch: int) -> int:
    """The epoch's number of batches, once its arguments are known to be good."""
    n = len(images.pixels_NCHW)
    if n == 0:
        raise InputError("there are no training images", key="data")
    if images.labels_N.shape != (n,):
        raise ValueError(f"{n} images have labels of shape {tuple(images.labels_N.shape)}")
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
    """A hash: seeds of different trials, epochs and purposes are unrelated, which sums of them are not."""
    digest = hashlib.sha256(f"{config.seed}/{epoch}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _batch(
    images: LabelledImages, rows: Tensor, generator: torch.Generator, config: TrialConfig, scale: Tensor
) -> tuple[Tensor, Tensor]:
    batch = augment(
        images.pixels_NCHW[rows],
        generator,
        padding=config.crop_padding,
        mode=config.crop_mode,
        flip=config.flip,
        rotation=config.rotation,
    )
    x_NCHW = normalize(batch, *scale).contiguous(memory_format=torch.channels_last)  # a fifth faster, on a CPU too
    return x_NCHW, images.labels_N[rows]


def _update(
    optimizer: torch.optim.SGD,
    parameters: list[nn.Parameter],
    loss: Tensor,
    lr: float,
    clip_norm: float | None,
    bad: Tensor,
) -> None:
    """One optimizer step, skipped on the device once ``bad`` is set; ``bad`` is set here and never cleared.

    The norm is not finite where a gradient is not. It overflows float32 above 1e19 to 1e38, which counts as diverged.
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
