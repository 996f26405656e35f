"""The evaluator: five parts per method, what random maps of the same network get, and the difference of the two."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from study import metrics as names
from study.config import EvaluationConfig
from study.errors import InputError
from study.faithfulness import metrics
from study.faithfulness.masking import gaussian_blur, ranks, step_counts, undefined_maps, upsampled_masks
from study.faithfulness.protocols import PROTOCOLS, Protocol
from study.networks.guided import input_gradients
from study.saliency import distinct_methods, evaluating, saliency_maps, same_maps

#: Masked images that go through the network together, at most (a batch alone may be larger): fine steps must not
#: multiply the memory of an evaluation.
_TOGETHER = 1024


@dataclass(frozen=True)
class MethodScores:
    """Means over images, in percent; ``undefined`` counts maps that point nowhere (they are scored as all-zero)."""

    parts: dict[str, float]
    undefined: int
    mean: float


@dataclass(frozen=True)
class FaithfulnessReport:
    """Scores of one network on given images under one protocol.

    ``faithfulness``: mean over ``distinct`` methods of (100-AD+AI+AG+Ins+100-Del)/5, minus the same for random maps
    (percentage points, -100 to 100, higher is better). NaN where an output on an image or a masked image is not finite.
    ``alignment``: mean cos(input gradient, guided gradient) in eval mode, 0 for a gradient of zero norm.
    ``accuracy``: %. ``per_image``: columns (n,) of the values behind every mean.
    """

    accuracy: float
    alignment: float
    faithfulness: float
    protocol: str
    images: int
    seconds: float
    methods: dict[str, MethodScores]
    distinct: tuple[str, ...]
    per_image: dict[str, NDArray[Any]]

    def metrics(self) -> dict[str, float]:
        """Everything under its ledger name."""
        values = {names.FAITHFULNESS.ledger_name: self.faithfulness, names.ALIGNMENT.ledger_name: self.alignment}
        for method, scores in self.methods.items():
            values |= {names.saliency_metric(method, part): value for part, value in scores.parts.items()}
            values[names.undefined_metric(method)] = float(scores.undefined)
        return values


def evaluate_faithfulness(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    config: EvaluationConfig,
    device: torch.device | str = "cpu",
) -> FaithfulnessReport:
    """Score ``network`` on uint8 images (n, 3, H, W) with labels (n,), all of them.

    One forward pass serves probabilities, activations and maps; insertion and deletion share their end points; a map
    that two methods share is masked once. Random maps are drawn once for all images from ``config.random_seed``, so
    the batch size changes nothing. The network's modes and its parameters' ``.grad`` stay as they were.

    Raises :class:`study.errors.InputError` for images and labels that do not fit together or do not fit the network,
    and for a network whose last activation map has no places or whose logits are not its head of that map's mean.
    """
    start = time.perf_counter()
    _check(network, images, labels)
    protocol = PROTOCOLS[config.protocol]
    scale = torch.tensor(std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
    shift = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
    generator = torch.Generator().manual_seed(config.random_seed)
    columns: dict[str, list[Tensor]] = {}
    random: Tensor | None = None
    with evaluating(network):
        with torch.no_grad():
            zero_logits = network(torch.zeros((1, *images.shape[1:]), device=device))
        for first in range(0, len(labels), config.batch_size):
            rows = slice(first, first + config.batch_size)
            pixels = images[rows].to(device).float() / 255
            y = labels[rows].to(device)
            x = (pixels - shift) / scale
            with torch.no_grad():
                found = saliency_maps(network, x, y if protocol.class_choice == "label" else None, config.methods)
                if random is None:
                    _check_head(network, x[:1], found.logits[:1])
                    grid = next(iter(found.maps.values())).shape[1:]
                    random = torch.rand((len(labels), *grid), generator=generator)
                target = y if protocol.class_choice == "label" else found.logits.argmax(1)
                maps = {**found.maps, names.RANDOM_MAPS: random[rows].to(device)}
                batch = _score(network, x, pixels, target, found.logits, zero_logits, maps, protocol, shift, scale)
            batch["label"] = y
            batch["predicted"] = found.logits.argmax(1)
            batch["correct"] = batch["predicted"] == y
            delta, guided = input_gradients(network, x, y)
            batch["alignment"] = F.cosine_similarity(_direction(delta), _direction(guided))
            for name, values in batch.items():
                columns.setdefault(name, []).append(values.cpu())
    per_image = {name: torch.cat(values).numpy() for name, values in columns.items()}
    return _report(per_image, config, protocol, time.perf_counter() - start)


def _check(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or not len(images):
        raise InputError(
            f"faithfulness: images are {images.dtype} of shape {tuple(images.shape)}; they must be uint8 (n, 3, H, W) "
            "with n at least 1"
        )
    if labels.shape != images.shape[:1]:
        raise InputError(f"faithfulness: {len(images)} images and labels of shape {tuple(labels.shape)}; give one each")
    classes = getattr(getattr(network, "head", None), "out_features", None)
    if classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"faithfulness: labels run from {int(labels.min())} to {int(labels.max())} "
            f"and the network knows classes 0 to {classes - 1}"
        )


def _check_head(network: nn.Module, x_NCHW: Tensor, logits_NC: Tensor) -> None:
    """The maps' closed forms hold for GAP + linear alone: of another head they would be wrong, and nothing shows it.

    The tolerance is wide (a kernel chosen for another batch size, reduced precision) beside what another head does.
    """
    difference = (network(x_NCHW).float() - logits_NC).abs().max()
    if difference > 0.05 * logits_NC.abs().max().clamp(min=1):  # not so for NaN, which is scored as NaN
        raise InputError(
            f"faithfulness: the logits of {type(network).__name__} are not its head of the mean of features(x); "
            "only such networks are scored"
        )


def _direction(gradient_NCHW: Tensor) -> Tensor:
    """(N, C·H·W) with largest absolute value 1 (all zero stays so): a confident image's tiny gradient still points."""
    flat = gradient_NCHW.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    return flat / torch.where(largest == 0, torch.ones_like(largest), largest)


def _logits(network: nn.Module, variants: Iterable[Tensor], n: int) -> Tensor:
    """Logits (V·n, C) of V variants of n images each, in as few and as large forward passes as ``_TOGETHER`` allows."""
    waiting: list[Tensor] = []
    done: list[Tensor] = []
    for variant in variants:
        waiting.append(variant)
        if (len(waiting) + 1) * n > _TOGETHER:
            done.append(network(torch.cat(waiting)))
            waiting = []
    if waiting:
        done.append(network(torch.cat(waiting)))
    return torch.cat(done)


def _score(
    network: nn.Module,
    x: Tensor,
    pixels: Tensor,
    target: Tensor,
    logits: Tensor,
    zero_logits: Tensor,
    maps: dict[str, Tensor],
    protocol: Protocol,
    shift: Tensor,
    scale: Tensor,
) -> dict[str, Tensor]:
    """The parts of every map for one batch, as columns (N,)."""
    p, q = metrics.probabilities(logits, target)
    blurred = gaussian_blur(x, protocol.blur_kernel, protocol.blur_sigma)
    p_blurred = metrics.probabilities(network(blurred), target)[0]
    p_zero = metrics.probabilities(zero_logits.expand(len(x), -1), target)[0]
    height, width = x.shape[2:]
    counts = step_counts(height * width, protocol.step_rows * width)
    finite = torch.where(logits.isfinite().all(1), 0.0, math.nan)
    columns: dict[str, Tensor] = {}
    shared = same_maps(tuple(maps))
    for method, raw in maps.items():
        if method in shared:
            continue
        mask = upsampled_masks(raw, (height, width))
        rank = ranks(mask)

        def variants(mask: Tensor = mask, rank: Tensor = rank) -> Iterator[Tensor]:
            yield (pixels * mask - shift) / scale
            for count in counts:
                yield torch.where(rank < count, x, blurred)
            for count in counts:
                yield torch.where(rank < count, torch.zeros_like(x), x)

        n_variants = 1 + 2 * len(counts)
        out = _logits(network, variants(), len(x))
        probability, rest = metrics.probabilities(out, target.repeat(n_variants))
        o_VN = probability.view(n_variants, -1)
        q_o = rest.view(n_variants, -1)[0]
        n_steps = len(counts)
        insertion = torch.stack([p_blurred, *o_VN[1 : 1 + n_steps], p], 1)
        deletion = torch.stack([p, *o_VN[1 + n_steps :], p_zero], 1)
        parts = {
            "average_drop": metrics.average_drop(p, o_VN[0]),
            "average_increase": metrics.average_increase(p, q, o_VN[0], q_o),
            "average_gain": metrics.average_gain(q, q_o),
            "insertion": metrics.area(insertion),
            "deletion": metrics.area(deletion),
        }
        for part, values in parts.items():
            columns[f"{method}/{part}"] = values + finite
        columns[f"{method}/undefined"] = undefined_maps(raw)
    for method, same in shared.items():
        for part in (*names.PARTS, "undefined"):
            columns[f"{method}/{part}"] = columns[f"{same}/{part}"]
    return columns


def _report(
    per_image: dict[str, NDArray[Any]], config: EvaluationConfig, protocol: Protocol, seconds: float
) -> FaithfulnessReport:
    methods: dict[str, MethodScores] = {}
    for method in (*config.methods, names.RANDOM_MAPS):
        parts = {part: float(np.mean(per_image[f"{method}/{part}"], dtype=np.float64)) for part in names.PARTS}
        total = metrics.combined({part: torch.tensor(value, dtype=torch.float64) for part, value in parts.items()})
        methods[method] = MethodScores(parts, int(per_image.pop(f"{method}/undefined").sum()), float(total))
    distinct = distinct_methods(config.methods)
    # A mean of differences, not a difference of means: a network with constant output scores exactly 0.
    over_random = [methods[method].mean - methods[names.RANDOM_MAPS].mean for method in distinct]
    return FaithfulnessReport(
        accuracy=100 * float(np.mean(per_image["correct"])),
        alignment=float(np.mean(per_image["alignment"], dtype=np.float64)),
        faithfulness=sum(over_random) / len(over_random),
        protocol=protocol.identity,
        images=len(per_image["label"]),
        seconds=seconds,
        methods=methods,
        distinct=distinct,
        per_image=per_image,
    )
