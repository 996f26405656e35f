"""A network's calibrated temperature: confident and modest networks are scored at comparable confidence.

Guo et al. 2017, *On Calibration of Modern Neural Networks*: logits are divided by the one number T that minimises the
log-loss of images that were neither trained on nor scored.

Shapes: N images, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from study.data import Dataset
from study.data.labelled import LabelledImages
from study.networks.state import device_of, evaluating

#: T lies between these multiples of the logits' root-mean-square deviation from their image's mean. Bounds that scale
#: with the logits keep the calibrated network the same whatever its confidence was. A network at chance ends at the
#: upper one, where its probabilities differ by a few percent of each other.
BOUNDS = (1 / 20, 20.0)
_BATCH = 500  # images
_HALVINGS = 60  # of the interval of 1/T: to the last digits of a float64


def fit_temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    """The T that minimises the mean cross-entropy of ``logits / T``, within ``BOUNDS``; 1 for constant logits.

    The loss is convex in 1/T, so halving the interval in which its derivative changes sign finds the minimum. Where it
    does not change sign the nearer bound is returned. NaN where a logit is not finite.
    """
    z = logits_NC.double()
    z = z - z.mean(1, keepdim=True)
    spread = float(z.square().mean().sqrt())
    if spread == 0:
        return 1.0
    if not spread < float("inf"):
        return float("nan")
    z = z / spread
    own = z.gather(1, labels_N[:, None]).squeeze(1)

    def slope(beta: float) -> float:
        """Derivative of the mean loss by 1/T, in units of the spread."""
        return float(((beta * z).softmax(1) * z).sum(1).mean() - own.mean())

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return spread / (low * high) ** 0.5


def calibrate(network: nn.Module, images: LabelledImages) -> float:
    """The network's temperature on images none of which is scored."""
    device = device_of(network)
    shift, scale = images.shift_and_scale(device)
    with evaluating(network), torch.no_grad():
        logits = [
            network((x.to(device).float() / 255 - shift) / scale).float().cpu()
            for x in images.pixels_NCHW.split(_BATCH)
        ]
    return fit_temperature(torch.cat(logits), images.labels_N.cpu())


def temperature_of(
    network: nn.Module, dataset: Dataset, calibration_images: int, card: Mapping[str, Any] | None = None
) -> float:
    """The temperature in the network's ``card``; without one, fitted to the validation images reserved for that."""
    recorded = None if card is None else recorded_temperature(card)
    if recorded is not None:
        return recorded
    return calibrate(network, LabelledImages.of(dataset, dataset.calibration(calibration_images)))


def recorded_temperature(card: Mapping[str, Any]) -> float | None:
    """The temperature in the card of a network (``model.json``); None in cards of older versions, which have none."""
    value = card.get("temperature")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def at_temperature(network: nn.Module, temperature: float) -> nn.Module:
    """A copy whose logits are the network's divided by ``temperature``: its linear head is scaled, so that maps which
    depend on the logits' scale (Grad-CAM++, Score-CAM) are those of the calibrated network too."""
    scaled = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in scaled.head.parameters():  # type: ignore[union-attr, operator]
            parameter.div_(temperature)
    return scaled
