"""Agreement of a map with the drop of the class's logit when cells are deleted, one by one and in random halves.

After IDSDS (Hesse et al. 2024, arXiv 2407.11910; without its in-domain training) and faithfulness correlation (Bhatt et
al. 2020). Only ranks and correlations are taken, so the logits' scale, the network's confidence, does not matter.

Shapes: N images, G×G = Z cells, V masked copies of every image. The logit is the class's, less its mean over classes:
a change common to all classes does not affect the decision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from study.faithfulness.grid import CELLS

_TINY = 1e-12


def single_deletions(cells: int = CELLS) -> Tensor:
    """(Z, Z) bool, True where a cell is kept: row i lacks cell i alone."""
    return ~torch.eye(cells**2, dtype=torch.bool)


def random_halves(n: int, seed: int, pairs: int = 8, cells: int = CELLS) -> Tensor:
    """(n, 2·pairs, Z) bool, True where a cell is kept: random halves of the cells, each followed by its complement.

    The first k are the same for every n.
    """
    z = cells**2
    order = np.random.Generator(np.random.PCG64(seed)).random((n, pairs, z)).argsort(-1).argsort(-1)
    half = torch.from_numpy(order < z // 2)
    return torch.stack([half, ~half], 2).flatten(1, 2)


def centred_logits(logits_NC: Tensor, classes_N: Tensor) -> Tensor:
    """(N,): the class's logit less the mean over classes."""
    own = logits_NC.gather(1, classes_N[:, None]).squeeze(1)
    return own - logits_NC.mean(1)


def masked_logits(
    forward: Callable[[Tensor], Tensor], x_NCHW: Tensor, instead_NCHW: Tensor, kept_NVZ: Tensor, classes_N: Tensor
) -> Tensor:
    """(N, V): centred logits of images that show x in the cells that are kept and ``instead`` in the others."""
    n, variants, z = kept_NVZ.shape
    cells = round(z**0.5)
    out = []
    for v in range(variants):
        kept = kept_NVZ[:, v].view(n, 1, cells, cells)
        pixels = torch.nn.functional.interpolate(kept.to(x_NCHW.dtype), size=x_NCHW.shape[2:], mode="nearest") > 0
        masked = torch.where(pixels, x_NCHW, instead_NCHW).contiguous(memory_format=torch.channels_last)
        out.append(centred_logits(forward(masked), classes_N))
    return torch.stack(out, 1)


def rank_agreement(map_NZ: Tensor, drop_NZ: Tensor) -> Tensor:
    """Spearman's correlation in percent, per image; 0 where either is constant (no order, no agreement)."""
    return correlation(mean_ranks(map_NZ.double()), mean_ranks(drop_NZ.double()))


def subset_agreement(map_NZ: Tensor, kept_NVZ: Tensor, logit_NV: Tensor) -> Tensor:
    """Pearson's correlation in percent between the sum of a map's kept cells and the logit; 0 where one is constant."""
    left_NV = (kept_NVZ.double() @ map_NZ.double()[:, :, None]).squeeze(2)
    return correlation(left_NV, logit_NV.double())


def correlation(a_NM: Tensor, b_NM: Tensor) -> Tensor:
    """Pearson's correlation of rows in percent; 0 where a row is constant or not finite."""
    a, b = (v - v.mean(1, keepdim=True) for v in (a_NM, b_NM))
    scale = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(scale > _TINY, 100 * (a * b).sum(1) / scale, 0.0)


def mean_ranks(values_NM: Tensor) -> Tensor:
    """Rank of each value in its row from 0: how many are smaller, plus half of the others that are equal.

    ``scipy.stats.rankdata`` does the same from 1; a bare GPU host does without scipy.
    """
    smaller = (values_NM[:, :, None] > values_NM[:, None]).sum(2)
    equal = (values_NM[:, :, None] == values_NM[:, None]).sum(2)
    return smaller + (equal - 1) / 2


def reference_map(kept_NVZ: Tensor, logit_NV: Tensor) -> Tensor:
    """(N, Z), >= 0: what each cell adds to the logit by a linear fit to the masked images (as LIME, without weights).

    The rows of ``kept`` must determine the fit: the whole image, single deletions and halves together do.
    """
    kept = kept_NVZ.double()
    design = torch.cat([kept, torch.ones_like(kept[..., :1])], 2)
    # Normal equations: the design is small and well-conditioned, and a non-finite logit affects its own image alone.
    fitted = torch.linalg.solve(design.mT @ design, design.mT @ logit_NV.double()[:, :, None])
    return fitted[:, :-1, 0].relu()
