"""The evaluator's first pass: maps, the paper's five metrics, and the logits of images with cells deleted.

Shapes: N images of a batch, n of all, G×G = Z cells of the common grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from study.faithfulness import deletion, grid
from study.faithfulness.batch import Batch, score_batch
from study.faithfulness.localization import localization
from study.faithfulness.masking import upsampled_masks
from study.faithfulness.scored_network import Collected, ScoredNetwork
from study.networks.guided import input_gradients
from study.networks.state import evaluating

#: Logits that differ by less than this share of their size between deleted cells differ by rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class FirstPass:
    """What the first pass over the images collects, on the CPU.

    ``columns``: per-image values (n,), those of the five metrics (masked_n,). ``maps``: per method and stand-in
    (n, G, G), of the calibrated network, in [0, 1], all zero where undefined. ``logits``, ``blurred_logits``,
    ``hidden_logits`` (n, classes) of the calibrated network, ``target`` (n,). ``drops`` (n, Z): by how much the class's
    logit falls when a cell is deleted. ``halves`` (masked_n, V, Z) and ``half_logits`` (masked_n, V): random halves of
    the cells and the logits with these alone. ``reference`` (masked_n, G, G): the linear fit to all of them.
    """

    columns: dict[str, Tensor]
    maps: dict[str, Tensor]
    logits: Tensor
    blurred_logits: Tensor
    hidden_logits: Tensor
    target: Tensor
    drops: Tensor
    halves: Tensor
    half_logits: Tensor
    reference: Tensor


def first_pass(
    subject: ScoredNetwork,
    stand_ins: Mapping[str, Tensor] | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> FirstPass:
    """``stand_ins`` (n, h, w) by name are scored as if they were a method's maps; ``tell(done)`` follows the images.

    Raises :class:`study.errors.InputError` for a network whose last activation map has no places or whose logits are
    not its head of that map's mean.
    """
    found, maps, columns = Collected(), Collected(), Collected()
    single = deletion.single_deletions().expand(subject.n, -1, -1)
    halves = deletion.random_halves(subject.masked_n, subject.config.random_seed)
    with evaluating(subject.network), torch.no_grad():
        for rows in subject.batches(subject.n):
            batch, own_maps, calibrated_maps = subject.explain(rows, stand_ins or {})
            columns.add(_columns(subject, rows, batch, own_maps))
            maps.add({name: on_grid(m) for name, m in calibrated_maps.items()})
            found.add({
                "logits": batch.logits, "blurred": batch.blurred_logits, "hidden": batch.hidden_logits,
                "target": batch.target, "whole": deletion.centred_logits(batch.logits, batch.target),
                "single": _logits_with(subject, batch, single[rows]),
            })  # fmt: skip
            if rows.start < subject.masked_n:
                found.add({"halves": _logits_with(subject, batch, halves[rows])})
            tell(rows.stop)
    joined = found.joined()
    whole = joined["whole"][:, None]
    drops = whole - joined["single"]
    drops[drops.amax(1) - drops.amin(1) <= _ROUNDING * joined["logits"].abs().amax(1)] = 0
    first = slice(subject.masked_n)
    design = torch.cat([torch.ones_like(single[first, :1]), single[first], halves], 1)
    reference = deletion.reference_map(design, torch.cat([whole[first], joined["single"][first], joined["halves"]], 1))
    return FirstPass(
        columns=columns.joined(),
        maps=maps.joined(),
        logits=joined["logits"],
        blurred_logits=joined["blurred"],
        hidden_logits=joined["hidden"],
        target=joined["target"],
        drops=drops,
        halves=halves,
        half_logits=joined["halves"],
        reference=on_grid(reference.float().view(-1, grid.CELLS, grid.CELLS)),
    )


def on_grid(map_Nhw: Tensor) -> Tensor:
    """(N, G, G) in [0, 1]; all zero where the map is undefined."""
    size = (grid.CELLS, grid.CELLS)
    return upsampled_masks(grid.to_grid(map_Nhw), size)[:, 0]


def _logits_with(subject: ScoredNetwork, batch: Batch, kept_MVZ: Tensor) -> Tensor:
    """(M, V): centred logits of the batch's first M images of which only the cells ``kept`` are left."""
    m = len(kept_MVZ)
    kept = kept_MVZ.to(subject.device)
    return deletion.masked_logits(subject.calibrated, batch.x[:m], batch.hidden[:m], kept, batch.target[:m])


def _columns(subject: ScoredNetwork, rows: slice, batch: Batch, own_maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per image: label, what was predicted, alignment, localization; of the first ``masked_n`` the five metrics."""
    labels = subject.images.labels_N[rows].to(subject.device)
    predicted = batch.logits.argmax(1)
    columns: dict[str, Tensor] = {"label": labels, "predicted": predicted, "correct": predicted == labels}
    gradient, guided = input_gradients(subject.network, batch.x, labels)
    columns["alignment"] = F.cosine_similarity(_direction(gradient), _direction(guided))
    masked = min(subject.masked_n, rows.stop) - rows.start
    if masked > 0:
        few = {name: m[:masked] for name, m in own_maps.items()}
        columns |= score_batch(subject.inference, subject.as_it_is(batch, masked), few, subject.protocol)
    if subject.images.masks_NHW is not None:
        masks = subject.images.masks_NHW[rows].to(subject.device)
        for method, raw in own_maps.items():
            columns |= {f"{method}/{name}": values for name, values in localization(raw, masks).items()}
    return columns


def _direction(gradient_NCHW: Tensor) -> Tensor:
    """(N, C·H·W), scaled to a largest absolute value of 1: a confident image's tiny gradient still has a direction.

    All zero stays so.
    """
    flat = gradient_NCHW.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    return flat / torch.where(largest == 0, torch.ones_like(largest), largest)
