"""Class activation maps that need the last activation map A and the gradient of the class's logit in it.

Shapes: N images, K channels of A_NKhw, h*w = Z places; w_NK is the head's row of each image's class, y_N its logit.

For a network that averages A over its places and applies a linear head, the gradient is the constant g_k = w_k / Z, so
every map has a closed form and no backward pass is needed:

- Grad-CAM (Selvaraju et al. 2017, eq. 1-2): weight = mean gradient = w_k / Z.
- XGrad-CAM (Fu et al. 2020, eq. 8): weight = sum(g A) / sum(A) = w_k / Z wherever sum(A) is not 0: Grad-CAM's map.
- Grad-CAM++ (Chattopadhay et al. 2018, eq. 19): weight = Z relu(g) / (2 + g sum(A)).
- LayerCAM (Jiang et al. 2021, eq. 6-8): weight = relu(g), at every place.
- Ablation-CAM (Desai & Ramaswamy 2020, eq. 2): weight = (y - y without channel k) / |y| = w_k mean(A_k) / |y|. The
  paper divides by y, whose sign would turn the map over where the class's logit is negative; here a channel whose
  removal lowers the logit counts as support, whatever that sign.
"""

from __future__ import annotations

from torch import Tensor

from study.errors import InputError

#: Maps that change by more than a factor when the logits are scaled.
SCALE_DEPENDENT = ("grad_cam_plus_plus", "score_cam")
GRADIENT_CAMS = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "layer_cam")

_TINY = 1e-12


def closed_form_weights(method: str, a_NKhw: Tensor, w_NK: Tensor, y_N: Tensor) -> Tensor:
    """Channel weights (N, K) for GAP + linear."""
    places = a_NKhw.shape[2] * a_NKhw.shape[3]
    g_NK = w_NK / places
    if method in ("grad_cam", "xgrad_cam"):
        return g_NK
    if method == "grad_cam_plus_plus":
        return places * g_NK.relu() / _apart_from_zero(2 + g_NK * a_NKhw.sum((2, 3)))
    if method == "layer_cam":
        return g_NK.relu()
    if method == "ablation_cam":
        return w_NK * a_NKhw.mean((2, 3)) / _apart_from_zero(y_N.abs())[:, None]
    raise InputError(f"saliency: {method} has no closed form")


def gradient_map(method: str, a_NKhw: Tensor, g_NKhw: Tensor) -> Tensor:
    """The map (N, h, w) of one of ``GRADIENT_CAMS``, for any head, from the gradient of the class's logit in A."""
    if method == "layer_cam":
        return (g_NKhw.relu() * a_NKhw).sum(1).relu().float()
    if method == "grad_cam":
        weights_NK = g_NKhw.mean((2, 3))
    elif method == "xgrad_cam":
        weights_NK = (g_NKhw * a_NKhw).sum((2, 3)) / _apart_from_zero(a_NKhw.sum((2, 3)))
    elif method == "grad_cam_plus_plus":
        # alpha = g² / (2 g² + sum(A) g³) = 1 / (2 + sum(A) g), and 0 where g is 0; the weight sums alpha relu(g).
        alpha = 1 / _apart_from_zero(2 + a_NKhw.sum((2, 3), keepdim=True) * g_NKhw)
        weights_NK = (alpha * g_NKhw.relu()).sum((2, 3))
    else:
        raise InputError(f"saliency: {method} is not made from gradients in the last activation map")
    return combine(a_NKhw, weights_NK)


def combine(a_NKhw: Tensor, weights_NK: Tensor) -> Tensor:
    """The map relu(sum_k weight_k A_k), (N, h, w) in float32."""
    n, _, h, w = a_NKhw.shape
    return (weights_NK.float()[:, None] @ a_NKhw.float().flatten(2)).view(n, h, w).relu()


def _apart_from_zero(x: Tensor) -> Tensor:
    return x.masked_fill(x.abs() < _TINY, _TINY)
