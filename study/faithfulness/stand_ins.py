"""Maps that are not a network's explanation, scored in the place of its own: what do wrong maps get?

Shapes: N images of a batch, n of all, h×w a map's own places, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.config import EvaluationConfig
from study.data.labelled import LabelledImages
from study.faithfulness.calibration import at_temperature
from study.faithfulness.grid import CELLS, partners
from study.faithfulness.localization import centre_map
from study.faithfulness.protocols import PROTOCOLS
from study.faithfulness.randomization import cascade
from study.faithfulness.scored_network import Collected
from study.metrics import CENTRE_MAPS, RANDOM_MAPS
from study.networks.folding import folded
from study.networks.state import device_of
from study.saliency import distinct_methods, saliency_maps

EDGE_MAPS = "edges"
ANOTHER_IMAGE = "another_image"
INVERSE = "inverse_"  # + method
RANDOMIZED_NETWORK = "randomized_network"
OTHER_NETWORK = "other_network"

_NOISE_STREAM = 1  # beside the evaluator's draws, which take the bare seed


def stand_in_maps(
    network: nn.Module,
    images: LabelledImages,
    config: EvaluationConfig,
    *,
    temperature: float,
    other: nn.Module | None = None,
    on_images: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Maps (n, h, w) by name, on the CPU, for ``stand_ins`` of :func:`study.faithfulness.score.evaluate_faithfulness`.

    ``random`` cells; a Gaussian in the ``centre``; ``edges``, the image's own; ``another_image``'s map;
    ``inverse_METHOD`` of every distinct method; the map of a ``randomized_network``, whose layers are all drawn anew;
    and that of the ``other_network``, where ``other`` is given. The single maps are of the first distinct method of
    ``config``, and explain the class that the protocol asks of ``network``. ``images`` and ``temperature`` are those
    that the evaluator takes. Networks work on ``config.batch_size`` images at a time; the maps stay as small as their
    methods make them.
    """
    n, device = len(images), device_of(network)
    methods = distinct_methods(config.methods)
    first = methods[0]
    own = at_temperature(network, temperature)
    explained = {"own": own, RANDOMIZED_NETWORK: cascade(network, stages=1, seed=config.random_seed)[-1][1]}
    if other is not None:
        explained[OTHER_NETWORK] = other
    inference = {name: folded(of) for name, of in explained.items()}
    shift, scale = images.shift_and_scale(device)
    by_label = PROTOCOLS[config.protocol].class_choice == "label"
    collected = Collected()
    for start in range(0, n, config.batch_size):
        rows = slice(start, start + config.batch_size)
        pixels = images.pixels_NCHW[rows].to(device).float() / 255
        x = ((pixels - shift) / scale).contiguous(memory_format=torch.channels_last)
        classes = images.labels_N[rows].to(device) if by_label else None
        collected.add({EDGE_MAPS: edge_energy(pixels)})
        for name, of in explained.items():
            wanted = methods if of is own else (first,)
            found = saliency_maps(of, x, classes, wanted, inference=inference[name])
            classes = found.logits.argmax(1) if classes is None else classes  # the own network comes first
            if of is own:
                collected.add({ANOTHER_IMAGE: found.maps[first]})
                collected.add({f"{INVERSE}{method}": inverse(found.maps[method]) for method in methods})
            else:
                collected.add({name: found.maps[first]})
        if on_images is not None:
            on_images(min(start + config.batch_size, n), n)
    joined = collected.joined()
    joined[ANOTHER_IMAGE] = joined[ANOTHER_IMAGE][partners(n, max(1, n // 2))]
    return {RANDOM_MAPS: random_maps(n, config.random_seed), CENTRE_MAPS: centre_maps(n), **joined}


def random_maps(n: int, seed: int) -> Tensor:
    """(n, G, G): every cell of the common grid uniform in [0, 1); the first k are the same for every n."""
    drawn = np.random.Generator(np.random.PCG64([seed, _NOISE_STREAM])).random((n, CELLS, CELLS))
    return torch.from_numpy(drawn).float()


def centre_maps(n: int) -> Tensor:
    """(n, h, w): the same map n times, stored once."""
    return centre_map((2 * CELLS, 2 * CELLS)).expand(n, -1, -1)


def inverse(map_Nhw: Tensor) -> Tensor:
    """The map's maximum minus the map; an undefined map stays undefined."""
    return map_Nhw.amax((1, 2), keepdim=True) - map_Nhw


def edge_energy(images_NCHW: Tensor) -> Tensor:
    """(N, H, W): squared differences of neighbouring grey pixels, which depend on the image alone."""
    grey = images_NCHW.float().mean(1)
    across = F.pad(grey.diff(dim=2).square(), (0, 1))
    return across + F.pad(grey.diff(dim=1).square(), (0, 0, 0, 1))


def described(name: str, method: str) -> str:
    """A stand-in's name in tables; ``method`` is the first of the evaluation."""
    texts = {
        RANDOM_MAPS: "random cells",
        CENTRE_MAPS: "a Gaussian in the centre",
        EDGE_MAPS: "the image's edges",
        ANOTHER_IMAGE: f"another image's {method}",
        RANDOMIZED_NETWORK: f"{method} with all layers drawn anew",
        OTHER_NETWORK: f"the other network's {method}",
    }
    return texts.get(name, f"inverse of {name.removeprefix(INVERSE)}" if name.startswith(INVERSE) else name)
