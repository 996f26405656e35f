"""Class activation maps that ask the network again, with a channel hidden or an image masked, in bounded memory.

Shapes: N images, K channels of the last activation map A_NKhw, M masked images or maps that go through together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

#: From images (M, C, H, W), or activation maps (M, K, h, w), to logits (M, classes).
Logits = Callable[[Tensor], Tensor]


def ablation_weights(head: Logits, a_NKhw: Tensor, classes_N: Tensor, *, together: int) -> Tensor:
    """Ablation-CAM's channel weights (N, K) for any head: (y - y without channel k) / |y|.

    Only the head runs again, on ``together`` maps at a time. A channel that is zero everywhere cannot be missed: its
    weight is zero and costs nothing.
    """
    y_N = head(a_NKhw).gather(1, classes_N[:, None]).squeeze(1)
    image, channel = torch.nonzero(a_NKhw.flatten(2).any(2), as_tuple=True)
    drops_NK = torch.zeros(a_NKhw.shape[:2], device=a_NKhw.device, dtype=y_N.dtype)
    for rows, columns in zip(image.split(together), channel.split(together), strict=True):
        ablated = a_NKhw[rows]  # a copy
        ablated[torch.arange(len(rows), device=rows.device), columns] = 0
        scores = head(ablated).gather(1, classes_N[rows, None]).squeeze(1)
        drops_NK[rows, columns] = y_N[rows] - scores
    scale = y_N.abs()
    return drops_NK / torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]


def score_weights(logits: Logits, x_NCHW: Tensor, a_NKhw: Tensor, classes_N: Tensor, *, together: int) -> Tensor:
    """Score-CAM's channel weights (N, K): softmax over channels of the class's logit on the masked image.

    Wang et al. 2020, eq. 2-4: a channel's mask is its own map, min-max normalised and upsampled (half-pixel bilinear);
    the image, in the network's normalised space, is multiplied by it. The baseline's score is a constant under the
    softmax and is left out. A constant channel has an empty mask, whose image is all zero: one score for all of them.
    Images and channels are one flat list, of which ``together`` go through the network at a time.
    """
    low, high = a_NKhw.amin((2, 3)), a_NKhw.amax((2, 3))
    image, channel = torch.nonzero(high > low, as_tuple=True)
    empty_1C = logits(torch.zeros_like(x_NCHW[:1]))
    scores_NK = empty_1C[0, classes_N][:, None].repeat(1, a_NKhw.shape[1])
    for rows, columns in zip(image.split(together), channel.split(together), strict=True):
        least, most = low[rows, columns, None, None], high[rows, columns, None, None]
        masks = (a_NKhw[rows, columns] - least) / (most - least)
        masks = F.interpolate(masks[:, None], x_NCHW.shape[2:], mode="bilinear", align_corners=False)
        masked = (x_NCHW[rows] * masks).contiguous(memory_format=torch.channels_last)
        scores_NK[rows, columns] = logits(masked).gather(1, classes_N[rows, None]).squeeze(1)
    return scores_NK.softmax(1)
