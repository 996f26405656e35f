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

from study.errors import InputError
from study.networks.guided import guided

#: Gradients of a smaller norm (or sum of magnitudes) count as zero: the network is certain to float32's last digit,
#: and their direction is rounding noise. Its square is far above where float32 underflows.
ZERO_NORM = 1e-12


@dataclass(frozen=True)
class StepLoss:
    """One batch's losses in nats, as scalars on the device; ``loss`` carries the graph, the others are detached.

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
        raise InputError(f"reg_error: unknown value {error!r}; choose one of {', '.join(ERRORS)}")
    dtype = torch.promote_types(gradient_NCHW.dtype, torch.float32)
    return ERRORS[error](gradient_NCHW.to(dtype).flatten(1), target_NCHW.detach().to(dtype).flatten(1))


def regularized_loss(
    network: nn.Module,
    x_NCHW: Tensor,
    labels_N: Tensor,
    *,
    error: str | None,
    weight: float,
    label_smoothing: float = 0.0,
) -> StepLoss:
    """Forward pass and losses of one batch; the caller runs ``loss.backward()``.

    Input gradients are per image (n times the gradient of the batch mean), so that ``weight`` (lambda) does not depend
    on the batch size. At weight 0 this is plain training: ``x_NCHW`` needs no gradient, nothing more is computed, and
    ``error`` is not read. May run under autocast; gradients are taken outside of it, as torch asks.

    Raises :class:`InputError` for an unknown error function or a network that cannot be guided.
    """
    if weight == 0:
        logits = network(x_NCHW)
        classification = F.cross_entropy(logits, labels_N, label_smoothing=label_smoothing)
        return StepLoss(classification, classification.detach(), None, logits.detach())
    if error not in ERRORS:
        raise InputError(f"reg_error: unknown value {error!r}; choose one of {', '.join(ERRORS)}")
    x_NCHW = x_NCHW.detach().requires_grad_()
    logits = network(x_NCHW)
    classification = F.cross_entropy(logits, labels_N, label_smoothing=label_smoothing)
    n = labels_N.shape[0]
    with torch.autocast(x_NCHW.device.type, enabled=False):
        # The standard gradient first: taking it with create_graph keeps the graph for the guided one.
        (gradient_NCHW,) = torch.autograd.grad(classification, x_NCHW, create_graph=True)
        with guided(network):
            (target_NCHW,) = torch.autograd.grad(classification, x_NCHW, retain_graph=True)
        regularization = gradient_error(error, n * gradient_NCHW, n * target_NCHW).mean()
        loss = classification + weight * regularization
    return StepLoss(loss, classification.detach(), regularization.detach(), logits.detach())
