"""What a map is worth beyond wrong maps: its scores less those of other images' maps and of the same map moved.

Agreement compares a map with the logits of images with cells deleted and costs no forward pass. The masking excess
masks images by their own map and by another image's, in place and shifted.

Shapes: n images, G×G = Z cells of the common grid. Sources are maps (n, G, G) by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from study import metrics as names
from study.faithfulness import deletion, grid
from study.faithfulness.batch import Batch, score_batch
from study.faithfulness.first_pass import FirstPass
from study.faithfulness.masking import undefined_maps
from study.faithfulness.metrics import combined
from study.faithfulness.scored_network import Collected, ScoredNetwork

#: How many other images' maps each map's agreement is compared with.
OTHERS = 8
#: The columns of a source that masking makes.
EXCESSES = ("own_excess", "other_excess", "masking_excess")


def agreements(first: FirstPass, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Columns of every source's agreements in percent, the own map's less the mean of other images' maps'.

    As long as the source, those with halves of the cells as long as the images that are masked.
    """
    indifferent = first.drops.amax(1) == first.drops.amin(1)
    finite = first.logits.isfinite().all(1) & first.drops.isfinite().all(1)
    nan_unless_finite = torch.where(finite, 0.0, math.nan)
    columns: dict[str, Tensor] = {}
    for name, map_nGG in sources.items():
        flat, n = map_nGG.flatten(1), len(map_nGG)
        others = [grid.partners(n, k) for k in range(1, min(OTHERS, n - 1) + 1)]
        undefined = undefined_maps(map_nGG) | indifferent[:n]
        measures: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
            names.DELETION_AGREEMENT.name: (n, lambda m: deletion.rank_agreement(m, first.drops[: len(m)])),
            names.SUBSET_AGREEMENT.name: (
                len(first.half_logits),
                lambda m: deletion.subset_agreement(m, first.halves, first.half_logits),
            ),
        }
        for measure, (of_n, agreement) in measures.items():
            own = agreement(flat[:of_n])
            other = torch.stack([agreement(flat[k[:of_n]]) for k in others]).mean(0)
            columns[f"{name}/{measure}"] = torch.where(undefined[:of_n], 0.0, own - other) + nan_unless_finite[:of_n]
            columns[f"{name}/other_{measure}"] = other
        columns[f"{name}/undefined"] = undefined
    return columns


def masking_excess(
    subject: ScoredNetwork,
    first: FirstPass,
    sources: Mapping[str, Tensor],
    *,
    images: int,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, Tensor]:
    """Columns of every source's masking excess on the first ``images``, in percentage points.

    ``own_excess``: the map's five metrics in one, less those of the same map moved; ``other_excess``: the same of
    another image's map; ``masking_excess``: the difference, 0 where the own map is undefined.
    """
    offsets = grid.shift_offsets(subject.n, subject.config.random_seed, subject.config.shifts)
    found = Collected()
    with torch.no_grad():
        for rows in subject.batches(images):
            masks: dict[str, Tensor] = {}
            for name, map_nGG in sources.items():
                partner = grid.partners(len(map_nGG))[rows]
                for whose, chosen in (("own", map_nGG[rows]), ("other", map_nGG[partner])):
                    masks[f"{name} {whose}"] = chosen
                    for s in range(offsets.shape[1]):
                        masks[f"{name} {whose} {s}"] = grid.shifted(chosen, offsets[rows, s])
            on_device = {k: m.to(subject.device) for k, m in masks.items()}
            columns = score_batch(subject.calibrated, _batch_again(subject, rows, first), on_device, subject.protocol)
            total = {k: combined({part: columns[f"{k}/{part}"] for part in names.PARTS}).cpu() for k in masks}
            for name, map_nGG in sources.items():
                own, other = (
                    total[f"{name} {whose}"]
                    - torch.stack([total[f"{name} {whose} {s}"] for s in range(offsets.shape[1])]).mean(0)
                    for whose in ("own", "other")
                )
                excess = torch.where(undefined_maps(map_nGG[rows]), 0.0 * own, own - other)
                found.add({f"{name}/{k}": v for k, v in zip(EXCESSES, (own, other, excess), strict=True)})
            tell(rows.stop)
    return found.joined()


def _batch_again(subject: ScoredNetwork, rows: slice, first: FirstPass) -> Batch:
    """A batch of the first pass, from the logits that it kept."""
    kept = (first.target, first.logits, first.blurred_logits, first.hidden_logits)
    target, *logits = (values[rows].to(subject.device) for values in kept)
    return subject.batch(*subject.opened(rows), target, (logits[0], logits[1], logits[2]))
