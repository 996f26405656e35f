"""Class activation maps from the last activation map A and the gradient g of the class's logit in it.

For a network that averages A over its Z places and applies a linear head, the gradient is the constant g_k = w_k / Z at
every place, so every map has a closed form and no backward pass is needed. Shapes: see :mod:`study.saliency.method`.
The examples are of two channels of two places, A = [1 3] and [2 0], and the class's head weights w = (1, -1).
"""

from __future__ import annotations

from torch import Tensor

from study.saliency.method import Case, Method

_TINY = 1e-12


class ActivationMethod(Method):
    """The map relu(sum_k weight_k A_k)."""

    def closed_form(self, case: Case) -> Tensor:
        """Channel weights (N, K) for the network's own head; those for any head where there is no closed form."""
        return self.weights(case)

    def weights(self, case: Case) -> Tensor:
        """Channel weights (N, K) for any head."""
        raise NotImplementedError

    def map(self, case: Case) -> Tensor:
        weights_NK = self.closed_form(case) if case.head is None else self.weights(case)
        n, _, h, w = case.a_NKhw.shape
        return (weights_NK.float()[:, None] @ case.a_NKhw.float().flatten(2)).view(n, h, w).relu()


class GradCam(ActivationMethod):
    """Grad-CAM (Selvaraju et al. 2017), eq. 1-2: weight_k = mean(g_k) = w_k / Z.

    >>> saliency_maps(network, x_NCHW, classes_N, ["grad_cam"]).maps["grad_cam"]
    tensor([[[0.0000, 1.5000]]])
    """

    name = "grad_cam"

    def closed_form(self, case: Case) -> Tensor:
        return _gradient(case)

    def weights(self, case: Case) -> Tensor:
        return case.g_NKhw.mean((2, 3))


class GradCamPlusPlus(ActivationMethod):
    """Grad-CAM++ (Chattopadhay et al. 2018), eq. 19: weight_k = sum(alpha relu(g_k)).

    alpha = g_k² / (2 g_k² + sum(A_k) g_k³) = 1 / (2 + sum(A_k) g_k). Closed form: Z relu(g_k) / (2 + g_k sum(A_k)).

    >>> saliency_maps(network, x_NCHW, classes_N, ["grad_cam_plus_plus"]).maps["grad_cam_plus_plus"]
    tensor([[[0.2500, 0.7500]]])
    """

    name = "grad_cam_plus_plus"
    scale_dependent = True

    def closed_form(self, case: Case) -> Tensor:
        g_NK = _gradient(case)
        return _places(case) * g_NK.relu() / apart_from_zero(2 + g_NK * case.a_NKhw.sum((2, 3)))

    def weights(self, case: Case) -> Tensor:
        alpha = 1 / apart_from_zero(2 + case.a_NKhw.sum((2, 3), keepdim=True) * case.g_NKhw)
        return (alpha * case.g_NKhw.relu()).sum((2, 3))


class XGradCam(GradCam):
    """XGrad-CAM / Axiom-CAM (Fu et al. 2020), eq. 8: weight_k = sum(g_k A_k) / sum(A_k).

    For a constant g it is w_k / Z wherever sum(A_k) is not 0: Grad-CAM's map.

    >>> saliency_maps(network, x_NCHW, classes_N, ["xgrad_cam"]).maps["xgrad_cam"]
    tensor([[[0.0000, 1.5000]]])
    """

    name = "xgrad_cam"

    def weights(self, case: Case) -> Tensor:
        return (case.g_NKhw * case.a_NKhw).sum((2, 3)) / apart_from_zero(case.a_NKhw.sum((2, 3)))


class LayerCam(ActivationMethod):
    """LayerCAM (Jiang et al. 2021), eq. 6-8: relu(sum_k relu(g_k) A_k), with the gradient of every place.

    >>> saliency_maps(network, x_NCHW, classes_N, ["layer_cam"]).maps["layer_cam"]
    tensor([[[0.5000, 1.5000]]])
    """

    name = "layer_cam"

    def closed_form(self, case: Case) -> Tensor:
        return _gradient(case).relu()

    def map(self, case: Case) -> Tensor:
        if case.head is None:
            return super().map(case)
        return (case.g_NKhw.relu() * case.a_NKhw).sum(1).relu().float()


def apart_from_zero(x: Tensor) -> Tensor:
    """A divisor: x, or a tiny positive number where x is smaller than that."""
    return x.masked_fill(x.abs() < _TINY, _TINY)


def _places(case: Case) -> int:
    return case.a_NKhw.shape[2] * case.a_NKhw.shape[3]


def _gradient(case: Case) -> Tensor:
    """(N, K): g of the network's own head, w_k / Z."""
    return case.w_NK / _places(case)
