"""The five metrics of every map of one batch, in as few forward passes as they need.

Shapes: N images, C channels, H×W pixels, V variants of every image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from study import metrics as names
from study.faithfulness import metrics
from study.faithfulness.masking import ranks, step_counts, upsampled_masks
from study.faithfulness.protocols import Protocol
from study.saliency import same_maps

#: At most so many masked images go through the network together (one variant of a large batch may be more), so that
#: memory does not grow with the number of steps.
_TOGETHER = 256

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Images and the network's logits of them, unmasked, blurred and hidden.

    ``x`` (N, C, H, W) is ``pixels`` in [0, 1] minus ``shift``, over ``scale``. Insertion starts from ``blurred`` and
    deletion ends at ``hidden``, both normalised. ``target`` (N,): the classes of interest. ``logits``,
    ``blurred_logits`` and ``hidden_logits`` (N, classes) are those of the three. ``over_blur``: a mask fades into the
    blurred image instead of black.
    """

    x: Tensor
    pixels: Tensor
    blurred: Tensor
    hidden: Tensor
    target: Tensor
    logits: Tensor
    blurred_logits: Tensor
    hidden_logits: Tensor
    shift: Tensor
    scale: Tensor
    over_blur: bool

    def masked(self, mask_N1HW: Tensor) -> Tensor:
        """The image where the mask is 1; black, or the blurred image, where it is 0."""
        if self.over_blur:
            return self.blurred + (self.x - self.blurred) * mask_N1HW
        return (self.pixels * mask_N1HW - self.shift) / self.scale


def score_batch(forward: Forward, batch: Batch, maps: Mapping[str, Tensor], protocol: Protocol) -> dict[str, Tensor]:
    """Columns (N,) ``MAP/PART`` in percent; a map that two methods share is masked once."""
    x, target = batch.x, batch.target
    p, q = metrics.probabilities(batch.logits, target)
    p_blurred = metrics.probabilities(batch.blurred_logits, target)[0]
    p_hidden = metrics.probabilities(batch.hidden_logits, target)[0]
    height, width = x.shape[2:]
    counts = step_counts(height * width, protocol.step_pixels(width))
    finite = torch.where(batch.logits.isfinite().all(1), 0.0, math.nan)
    columns: dict[str, Tensor] = {}
    shared = same_maps(tuple(maps))
    for method, raw in maps.items():
        if method in shared:
            continue
        mask = upsampled_masks(raw, (height, width))
        out = _logits(forward, _variants(batch, mask, counts), len(x))
        n_variants = 1 + 2 * len(counts)
        probability, rest = metrics.probabilities(out, target.repeat(n_variants))
        o_VN, q_o = probability.view(n_variants, -1), rest[: len(x)]
        insertion = torch.stack([p_blurred, *o_VN[1 : 1 + len(counts)], p], 1)
        deletion = torch.stack([p, *o_VN[1 + len(counts) :], p_hidden], 1)
        parts = {
            "average_drop": metrics.average_drop(p, o_VN[0]),
            "average_increase": metrics.average_increase(p, q, o_VN[0], q_o),
            "average_gain": metrics.average_gain(q, q_o),
            "insertion": metrics.area(insertion),
            "deletion": metrics.area(deletion),
        }
        columns |= {f"{method}/{part}": values + finite for part, values in parts.items()}
    for method, same in shared.items():
        columns |= {f"{method}/{part}": columns[f"{same}/{part}"] for part in names.PARTS}
    return columns


def _variants(batch: Batch, mask: Tensor, counts: list[int]) -> Iterator[Tensor]:
    """The masked images; insertion between blurred and whole; deletion between whole and hidden."""
    x, rank = batch.x, ranks(mask)
    yield batch.masked(mask)
    for count in counts:
        yield torch.where(rank < count, x, batch.blurred)
    for count in counts:
        yield torch.where(rank < count, batch.hidden, x)


def _logits(forward: Forward, variants: Iterable[Tensor], n: int) -> Tensor:
    """Logits (V·n, C) of V variants of n images each, in as few and as large forward passes as ``_TOGETHER`` allows."""
    waiting: list[Tensor] = []
    done: list[Tensor] = []
    for variant in variants:
        waiting.append(variant)
        if (len(waiting) + 1) * n > _TOGETHER:
            done.append(forward(torch.cat(waiting)))
            waiting = []
    if waiting:
        done.append(forward(torch.cat(waiting)))
    return torch.cat(done)
