"""The five parts of faithfulness, per image, in percent.

p is the probability of the class of interest on the image and o on the masked image. Average drop and increase:
Chattopadhay et al. 2018; average gain: Zhang et al. 2024 (Opti-CAM); insertion and deletion: Petsiuk et al. 2018
(RISE). Near p = 1 they take q = 1 - p, summed from the *other* classes' probabilities, since ``1 - p`` in float32 has
no digits left there.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEAR_ONE = 0.5  # above it q carries the digits, below it p does


def probabilities(logits_NC: Tensor, classes_N: Tensor) -> tuple[Tensor, Tensor]:
    """p and q = 1 - p, both (N,), each with full relative precision."""
    log_p = logits_NC.float().log_softmax(1)
    own = classes_N[:, None]
    p = log_p.gather(1, own).squeeze(1).exp()
    others = log_p.scatter(1, own, float("-inf"))
    return p, others.logsumexp(1).exp()


def average_drop(p: Tensor, o: Tensor) -> Tensor:
    """100 relu(p - o) / p; 0 where p is 0, from which nothing can drop. NaN where o is."""
    return 100 * torch.where(p > 0, ((p - o) / _or_one(p)).relu(), 0 * o)


def average_increase(p: Tensor, q: Tensor, o: Tensor, q_o: Tensor) -> Tensor:
    """100 where o > p, else 0 (a tie is no increase); near 1 the comparison is of q, which has the digits.

    NaN where o is: a comparison with it is false, which would read as "no increase".
    """
    return 100 * torch.where(p > _NEAR_ONE, q_o < q, o > p).to(p.dtype) + 0 * o


def average_gain(q: Tensor, q_o: Tensor) -> Tensor:
    """100 relu(o - p) / (1 - p) = 100 relu(1 - q_o / q); 0 where q is 0, above which nothing can gain.

    NaN where q_o is.
    """
    return 100 * torch.where(q > 0, (1 - q_o / _or_one(q)).relu(), 0 * q_o)


def _or_one(x: Tensor) -> Tensor:
    """A divisor. No smallest value instead of 0: below it, equal subnormal numbers would no longer divide to 1."""
    return torch.where(x > 0, x, torch.ones_like(x))


def area(curve_NS: Tensor) -> Tensor:
    """100 times the trapezoidal area under probabilities at equally spaced steps, first and last included."""
    return 100 * (curve_NS.sum(1) - (curve_NS[:, 0] + curve_NS[:, -1]) / 2) / (curve_NS.shape[1] - 1)


def combined(parts: dict[str, Tensor]) -> Tensor:
    """(100 - AD + AI + AG + Ins + 100 - Del) / 5, in percent: higher is better."""
    return (
        100
        - parts["average_drop"]
        + parts["average_increase"]
        + parts["average_gain"]
        + parts["insertion"]
        + 100
        - parts["deletion"]
    ) / 5
