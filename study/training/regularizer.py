"""The regularized loss L = L_C + lambda L_R (Torres Figueroa et al., VISAPP 2024, arXiv 2404.15024).

L_C is the mean cross-entropy, L_R the mean over the batch of an error E between an image's input gradient and the same
gradient by guided backpropagation. The guided one is a target: no gradient flows into it. The gradient of L is exact
(double backpropagation, Drucker & LeCun 1992) and shares one forward pass among L_C and both input gradients.

Shapes: N images, C channels, H and W height and width, D = C*H*W. K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.config import REG_GRADIENTS
from study.errors import InputError
from study.networks.guided import cross_entropy_gradient, record

#: Gradients of a smaller norm (or sum of magnitudes) count as zero: the network is certain to float32's last digit,
#: and their direction is rounding noise. Its square is far above where float32 underflows.
ZERO_NORM = 1e-12
#: Loss scale in float16: cross-entropy's gradient (at most 1) is multiplied by it. A scale 64 times as large would not
#: overflow yet, and one a million times as small would not underflow.
_HALF_SEED = 256.0


@dataclass(frozen=True)
class StepLoss:
    """One batch's losses in nats, as scalars on the device, without a graph.

    ``regularization`` (L_R, before lambda) is None where lambda is 0. ``logits`` are (N, K).
    """

    loss: Tensor
    classification: Tensor
    regularization: Tensor | None
    logits: Tensor


def _cosine(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    squares_a, squares_b = a_ND.square().sum(1), b_ND.square().sum(1)
    # Masked before the root and the quotient: a derivative that is infinite at zero would come back as NaN.
    defined = (torch.minimum(squares_a, squares_b) > ZERO_NORM**2).detach()
    one = torch.ones_like(squares_a)
    norms = torch.where(defined, squares_a, one).sqrt() * torch.where(defined, squares_b, one).sqrt()
    cosine = (a_ND * b_ND).sum(1) / norms
    return 1 - torch.where(defined, cosine, torch.zeros_like(cosine))


def _mse(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    return (a_ND - b_ND).square().mean(1)


def _mae(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    return (a_ND - b_ND).abs().mean(1)


def _histogram(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    sum_a, sum_b = a_ND.abs().sum(1), b_ND.abs().sum(1)
    defined = (sum_a.detach() > ZERO_NORM) & (sum_b > ZERO_NORM)
    one = torch.ones_like(sum_a)
    share_a_ND = a_ND.abs() / torch.where(defined, sum_a, one)[:, None]
    share_b_ND = b_ND.abs() / torch.where(defined, sum_b, one)[:, None]
    agree_ND = a_ND.detach().sign() == b_ND.sign()
    common = torch.where(agree_ND, torch.minimum(share_a_ND, share_b_ND), torch.zeros_like(a_ND)).sum(1)
    return 1 - torch.where(defined, common, torch.zeros_like(common))


#: E per image, by the names of ``study.config.REG_ERRORS``: (N, D) gradients and (N, D) targets to (N,) errors.
ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": _cosine,
    "mse": _mse,
    "mae": _mae,
    "histogram": _histogram,
}


def gradient_error(error: str, gradient_NCHW: Tensor, target_NCHW: Tensor) -> Tensor:
    """E per image (N,), in float32 at least. Similarities enter as 1 - similarity.

    ``cosine``: 1 - cos. ``mse``, ``mae``: mean over the image's entries. ``histogram``: 1 minus the intersection of
    the magnitudes' shares, over entries of equal sign. A gradient of zero norm has similarity 0 and passes no
    gradient. Raises :class:`InputError` for an unknown name.
    """
    if error not in ERRORS:
        raise InputError(f"unknown value {error!r}; choose one of {', '.join(ERRORS)}", key="reg_error")
    dtype = torch.promote_types(gradient_NCHW.dtype, torch.float32)
    return ERRORS[error](gradient_NCHW.to(dtype).flatten(1), target_NCHW.detach().to(dtype).flatten(1))


def regularized_step(
    network: nn.Module,
    x_NCHW: Tensor,
    labels_N: Tensor,
    *,
    error: str | None,
    weight: float | Tensor,
    through: str = "batch",
    label_smoothing: float = 0.0,
    share: float = 1.0,
    dtype: torch.dtype | None = None,
    fused: bool = False,
) -> StepLoss:
    """One batch's losses; the gradient of ``share * L`` in every parameter that trains is added to its ``.grad``.

    Input gradients are per image (n times the gradient of the batch mean), so that ``weight`` (lambda) does not depend
    on the batch size. ``through`` says which input gradients are compared (:data:`study.config.REG_GRADIENTS`):

    - ``batch``: those of the training pass as it is, through batch-norm's batch statistics. Images mix in them.
    - ``constant``: the same with each batch-norm as one scale a channel, its statistics constant in the input. L_R's
      derivative in the weights is exact: the statistics follow the weights.
    - ``inference``: those of a pass of their own, of the network as at inference: with running statistics, which are
      constants throughout, without dropout. L_C stays that of the training pass.

    ``share`` is a batch's part of a step that accumulates several. ``dtype``: what convolutions and
    linear layers compute in (bfloat16, float16), None for the parameters' own; losses, errors and reductions are in
    float32 at least. ``fused``: batch-norm's pointwise chains run as compiled kernels. At weight 0 this is plain
    training by stock autograd, and ``error`` is not read; a weight that is a scalar on the device is not 0.

    Raises :class:`InputError` for an unknown error function or gradient or a network that cannot be guided.
    """
    if not isinstance(weight, Tensor) and weight == 0:  # a tensor's value would be waited for
        with torch.autocast(x_NCHW.device.type, dtype=dtype, enabled=dtype is not None):
            logits = network(x_NCHW)
            loss = F.cross_entropy(logits, labels_N, label_smoothing=label_smoothing)
        _plain_backward(loss, network, share, _HALF_SEED * len(labels_N) if dtype == torch.float16 else None)
        return StepLoss(loss.detach(), loss.detach(), None, logits.detach())
    if error not in ERRORS:
        raise InputError(f"unknown value {error!r}; choose one of {', '.join(ERRORS)}", key="reg_error")
    if through not in REG_GRADIENTS:
        raise InputError(f"unknown value {through!r}; choose one of {', '.join(REG_GRADIENTS)}", key="reg_gradient")
    plain = None
    if through == "inference":
        plain = regularized_step(
            network, x_NCHW, labels_N, error=None, weight=0.0, label_smoothing=label_smoothing, share=share, dtype=dtype
        )
    tape = record(network, x_NCHW, dtype=dtype, fused=fused, through=through)
    logits_NK, n = tape.logits_NK, labels_N.shape[0]
    g_NK = cross_entropy_gradient(logits_NK, labels_N, label_smoothing)
    seed = _HALF_SEED if dtype == torch.float16 else 1.0
    gradient = tape.pull(seed * g_NK, keep=True)
    target = tape.pull(seed * g_NK, guided=True)
    regularization, u_NCHW = _error_and_gradient(error, gradient / seed, target / seed, weight)
    scale = power_of_two_below_inverse(u_NCHW) if dtype == torch.float16 else None
    u = u_NCHW if scale is None else u_NCHW * scale
    pushed_NK = tape.push(u.to(gradient.dtype), unscale=None if scale is None else 1 / (seed * scale))
    pushed_NK = pushed_NK if scale is None else pushed_NK / scale
    # <gradient, u> depends on the logits through g as well: by H J u, with H the Hessian of the cross-entropy.
    p_NK = logits_NK.softmax(1)
    v_NK = p_NK * (pushed_NK - (p_NK * pushed_NK).sum(1, keepdim=True))
    if plain is None:
        v_NK = g_NK / n + v_NK
    if scale is None:
        found = tape.backward(v_NK)
    else:
        inverse = torch.full_like(scale, 1 / (seed * n))
        found = tape.backward(seed * n * v_NK, unscale=inverse, rescale=n / scale)
    for parameter, total in found.items():
        total = total if share == 1 else total.mul_(share)
        parameter.grad = total if parameter.grad is None else parameter.grad.add_(total)
    if plain is not None:
        classification, logits_NK = plain.classification, plain.logits
    else:
        classification = F.cross_entropy(logits_NK, labels_N, label_smoothing=label_smoothing)
    return StepLoss(classification + weight * regularization, classification, regularization, logits_NK)


def _plain_backward(loss: Tensor, network: nn.Module, share: float, scale: float | None) -> None:
    """The gradient of ``share * loss`` by stock autograd. ``scale`` keeps float16 gradients from underflowing."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if scale is None:
        (loss if share == 1 else share * loss).backward(inputs=parameters)
        return
    gradients = torch.autograd.grad(scale * loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            gradient = gradient * (share / scale)
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _error_and_gradient(error: str, gradient: Tensor, target: Tensor, weight: float | Tensor) -> tuple[Tensor, Tensor]:
    """L_R, and the gradient of ``weight * L_R`` in the input gradient."""
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).requires_grad_()
    with torch.enable_grad():
        regularization = gradient_error(error, gradient, target).mean()
    (u_NCHW,) = torch.autograd.grad(weight * regularization, gradient)
    return regularization.detach(), u_NCHW


def power_of_two_below_inverse(u: Tensor) -> Tensor:
    """A scale (a scalar on the device) that brings the largest magnitude of u between 1/2 and 1; 1 for u = 0."""
    largest = u.abs().amax().float()
    return torch.where(largest > 0, torch.exp2(-torch.ceil(torch.log2(largest))), torch.ones_like(largest))
