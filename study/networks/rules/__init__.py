"""Operations of a network and their hand-derived first and second derivatives.

Let y = f(x; w) be one operation, J its Jacobian in x, g the gradient that arrives at y. A rule knows

- ``forward``: y;
- ``pull``: J^T g, the gradient that goes on to x (never to w), by the standard or by the guided rule;
- ``push``: J u for a direction u in x, and the gradient of <J^T g, u> in w: the derivative of the standard pull;
- ``backward``: J^T v plus the gradient of <J^T g, u> in x, and the gradient in w of both.

With these four, the gradient of a loss of *input gradients* is exact and costs what first-order primitives cost
(double backpropagation, Drucker & LeCun 1992): no composite double backward, no loop over the groups of a convolution.

Shapes: N images, C channels, H and W height and width, D features, K outputs.
"""

from __future__ import annotations

from study.networks.rules.affine import Convolution, Linear
from study.networks.rules.base import Cell, Pass, Pull, Rule
from study.networks.rules.normalization import BatchNorm
from study.networks.rules.rectifier import Rectifier
from study.networks.rules.selection import Dropout, MaxPool
from study.networks.rules.structure import Add, LinearOperation, Shift

__all__ = [
    "Add",
    "BatchNorm",
    "Cell",
    "Convolution",
    "Dropout",
    "Linear",
    "LinearOperation",
    "MaxPool",
    "Pass",
    "Pull",
    "Rectifier",
    "Rule",
    "Shift",
]
