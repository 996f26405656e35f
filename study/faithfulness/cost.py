"""What a map costs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor, nn

from study.networks.folding import folded
from study.saliency import saliency_maps


def milliseconds_per_image(
    network: nn.Module, x_NCHW: Tensor, classes_N: Tensor, methods: Sequence[str]
) -> dict[str, float]:
    """Wall clock of making each method's maps of these normalised images."""
    inference = folded(network)
    spent = {}
    for method in methods:
        seconds = []
        for _ in range(3):  # the first call prepares what later ones share
            start = time.perf_counter()
            saliency_maps(network, x_NCHW, classes_N, [method], inference=inference).logits.cpu()
            seconds.append(time.perf_counter() - start)
        spent[method] = 1000 * min(seconds) / len(x_NCHW)
    return spent
