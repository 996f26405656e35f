"""A network under evaluation: as it is and at its calibrated temperature, with the images that it is scored on.

Shapes: N images of a batch, n of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from study.config import EvaluationConfig
from study.data.labelled import LabelledImages
from study.errors import InputError
from study.faithfulness.batch import Batch
from study.faithfulness.calibration import at_temperature
from study.faithfulness.masking import gaussian_blur
from study.faithfulness.protocols import PROTOCOLS
from study.networks.folding import folded
from study.networks.state import device_of
from study.saliency import SCALE_DEPENDENT, saliency_maps


class ScoredNetwork:
    """``network`` as it is, ``inference`` the same folded, ``calibrated`` folded and at its temperature.

    Of the ``n`` images, what masking takes is measured on the first ``masked_n``. Raises :class:`InputError` for images
    and labels that do not fit together or do not fit the network, and for fewer than two images.
    """

    def __init__(
        self, network: nn.Module, images: LabelledImages, config: EvaluationConfig, temperature: float
    ) -> None:
        _check(network, images)
        self.network, self.inference = network, folded(network)
        self.calibrated = at_temperature(self.inference, temperature)
        self.images, self.config, self.temperature = images, config, temperature
        self.n = len(images)
        self.masked_n = min(config.masking_images or self.n, self.n)
        self.protocol = PROTOCOLS[config.protocol]
        self.device = device_of(network)
        self._shift, self._scale = images.shift_and_scale(self.device)

    def batches(self, n: int) -> Iterator[slice]:
        """The rows of each batch of the first ``n`` images."""
        for start in range(0, n, self.config.batch_size):
            yield slice(start, min(start + self.config.batch_size, n))

    def explain(
        self, rows: slice, stand_ins: Mapping[str, Tensor]
    ) -> tuple[Batch, dict[str, Tensor], dict[str, Tensor]]:
        """A batch with the calibrated network's logits; raw maps by the network as it is, and by the calibrated one.

        Stand-ins are among both.
        """
        methods, protocol = self.config.methods, self.protocol
        pixels, x, blurred = self.opened(rows)
        classes = self.images.labels_N[rows].to(self.device) if protocol.class_choice == "label" else None
        found = saliency_maps(self.network, x, classes, methods, inference=self.inference)
        if rows.start == 0:
            _check_head(self.network, self.inference, x[:1], found.logits[:1])
        target = found.logits.argmax(1) if classes is None else classes
        maps = {**found.maps, **{name: m[rows].to(self.device) for name, m in stand_ins.items()}}
        calibrated = dict(maps)
        again = [m for m in methods if m in SCALE_DEPENDENT]
        if again and self.temperature != 1:
            calibrated |= saliency_maps(self.calibrated, x, target, again, inference=self.calibrated).maps
        blurred_logits = self.calibrated(blurred)
        if protocol.hidden == "blurred":
            hidden_logits = blurred_logits
        else:
            hidden_logits = self.calibrated(torch.zeros_like(x[:1])).expand(len(x), -1)
        logits = (found.logits / self.temperature, blurred_logits, hidden_logits)
        return self.batch(pixels, x, blurred, target, logits), maps, calibrated

    def opened(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels in [0, 1], the normalized images, and these blurred, (N, C, H, W) each."""
        pixels = self.images.pixels_NCHW[rows].to(self.device).float() / 255
        x = ((pixels - self._shift) / self._scale).contiguous(memory_format=torch.channels_last)
        return pixels, x, gaussian_blur(x, self.protocol.blur_kernel, self.protocol.blur_sigma)

    def batch(
        self, pixels: Tensor, x: Tensor, blurred: Tensor, target: Tensor, logits: tuple[Tensor, Tensor, Tensor]
    ) -> Batch:
        """``logits`` of the images, of the blurred ones and of what is left when everything is hidden."""
        over_blur = self.protocol.hidden == "blurred"
        hidden = blurred if over_blur else torch.zeros_like(x)
        return Batch(x, pixels, blurred, hidden, target, *logits, self._shift, self._scale, over_blur)

    def as_it_is(self, batch: Batch, n: int) -> Batch:
        """The first ``n`` images of a batch, with the logits of the network as it is."""
        b, t = batch, self.temperature
        return Batch(
            b.x[:n], b.pixels[:n], b.blurred[:n], b.hidden[:n], b.target[:n],
            b.logits[:n] * t, b.blurred_logits[:n] * t, b.hidden_logits[:n] * t,
            b.shift, b.scale, b.over_blur,
        )  # fmt: skip


class Collected:
    """Columns of per-image values, collected batch by batch on the CPU."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, columns: Mapping[str, Tensor]) -> None:
        for name, values in columns.items():
            self._parts.setdefault(name, []).append(values.detach().cpu())

    def joined(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts) for name, parts in self._parts.items()}


def _check(network: nn.Module, images: LabelledImages) -> None:
    pixels, labels = images.pixels_NCHW, images.labels_N
    if pixels.ndim != 4 or pixels.dtype != torch.uint8 or not len(pixels):
        raise InputError(
            f"faithfulness: images are {pixels.dtype} of shape {tuple(pixels.shape)}; they must be uint8 (n, 3, H, W) "
            "with n at least 1"
        )
    if labels.shape != pixels.shape[:1]:
        raise InputError(f"faithfulness: {len(pixels)} images and labels of shape {tuple(labels.shape)}; give one each")
    if len(pixels) < 2:
        raise InputError("faithfulness: one image alone has no other image's map to be compared with; score at least 2")
    classes = getattr(getattr(network, "head", None), "out_features", None)
    if classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"faithfulness: labels run from {int(labels.min())} to {int(labels.max())} "
            f"and the network knows classes 0 to {classes - 1}"
        )


def _check_head(network: nn.Module, inference: nn.Module, x_NCHW: Tensor, logits_NC: Tensor) -> None:
    """The maps' closed forms hold for GAP + linear alone: for another head they are wrong without an error.

    The tolerance allows for rounding (a kernel chosen for another batch size, reduced precision); another head differs
    by far more.
    """
    difference = (inference(x_NCHW).float() - logits_NC).abs().max()
    if difference > 0.05 * logits_NC.abs().max().clamp(min=1):  # False for NaN, which is scored as NaN
        raise InputError(
            f"faithfulness: the logits of {type(network).__name__} are not its head of the mean of features(x); "
            "only such networks are scored"
        )
