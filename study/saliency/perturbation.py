"""Class activation maps whose weights come from running the network again, in bounded memory.

Shapes and examples: see :mod:`study.saliency.method` and :mod:`study.saliency.activation`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from study.saliency.activation import ActivationMethod, apart_from_zero
from study.saliency.method import Case

#: Masked images or maps that go through the network at a time: memory does not grow with the batch, and on a CPU they
#: stay in its cache.
TOGETHER = 32


class AblationCam(ActivationMethod):
    """Ablation-CAM (Desai & Ramaswamy 2020), eq. 2: weight_k = (y - y without channel k) / |y|.

    The paper divides by y, whose sign would invert the map where the class's logit is negative; here a channel whose
    removal lowers the logit counts as support, whatever that sign. Closed form: w_k mean(A_k) / |y|.

    >>> saliency_maps(network, x_NCHW, classes_N, ["ablation_cam"]).maps["ablation_cam"]
    tensor([[[0., 6.]]])
    """

    name = "ablation_cam"

    def closed_form(self, case: Case) -> Tensor:
        return case.w_NK * case.a_NKhw.mean((2, 3)) / apart_from_zero(case.y_N.abs())[:, None]

    def weights(self, case: Case) -> Tensor:
        """The head alone runs again. A channel that is zero everywhere gets weight zero and costs nothing."""
        assert case.head is not None
        a_NKhw, classes_N = case.a_NKhw, case.classes_N
        y_N = case.y_N
        image, channel = torch.nonzero(a_NKhw.flatten(2).any(2), as_tuple=True)
        drops_NK = torch.zeros(a_NKhw.shape[:2], device=a_NKhw.device, dtype=y_N.dtype)
        for rows, columns in zip(image.split(TOGETHER), channel.split(TOGETHER), strict=True):
            ablated = a_NKhw[rows]  # a copy
            ablated[torch.arange(len(rows), device=rows.device), columns] = 0
            scores = case.head(ablated).gather(1, classes_N[rows, None]).squeeze(1)
            drops_NK[rows, columns] = y_N[rows] - scores
        scale = y_N.abs()
        return drops_NK / torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]


class ScoreCam(ActivationMethod):
    """Score-CAM (Wang et al. 2020), eq. 2-4: weight = softmax over channels of the class's logit on the masked image.

    A channel's mask is its own map, min-max normalized and upsampled (half-pixel bilinear); the image, in the network's
    normalized space, is multiplied by it. The baseline's score is a constant under the softmax and is left out.

    >>> saliency_maps(network, x_NCHW, classes_N, ["score_cam"]).maps["score_cam"]
    tensor([[[1.1192, 2.6424]]])
    """

    name = "score_cam"
    scale_dependent = True
    folds = True

    def weights(self, case: Case) -> Tensor:
        """Images and channels are one flat list. Constant channels share one empty mask, whose image is all zero."""
        x_NCHW, a_NKhw, classes_N = case.x_NCHW, case.a_NKhw, case.classes_N
        low, high = a_NKhw.amin((2, 3)), a_NKhw.amax((2, 3))
        image, channel = torch.nonzero(high > low, as_tuple=True)
        empty_1C = case.logits_of(torch.zeros_like(x_NCHW[:1]))
        scores_NK = empty_1C[0, classes_N][:, None].repeat(1, a_NKhw.shape[1])
        for rows, columns in zip(image.split(TOGETHER), channel.split(TOGETHER), strict=True):
            least, most = low[rows, columns, None, None], high[rows, columns, None, None]
            masks = (a_NKhw[rows, columns] - least) / (most - least)
            masks = F.interpolate(masks[:, None], x_NCHW.shape[2:], mode="bilinear", align_corners=False)
            masked = (x_NCHW[rows] * masks).contiguous(memory_format=torch.channels_last)
            scores_NK[rows, columns] = case.logits_of(masked).gather(1, classes_N[rows, None]).squeeze(1)
        return scores_NK.softmax(1)
