"""The model-parameter randomization check (Adebayo et al. 2018, section 4.1).

A network's saliency maps must change when its layers are drawn anew, one after the other from the head down.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.data.labelled import LabelledImages
from study.faithfulness.deletion import rank_agreement
from study.faithfulness.masking import undefined_maps
from study.networks.state import device_of
from study.saliency import PixelOptions, saliency_maps


def cascade(network: nn.Module, stages: int, seed: int = 0) -> list[tuple[str, nn.Module]]:
    """Copies with more and more layers drawn anew: first the head alone, last all. Each with the lowest one's name.

    Layers are the modules that have ``reset_parameters``; batch-norm statistics are reset with them.
    """
    names = [name for name, module in network.named_modules() if hasattr(module, "reset_parameters")]
    counts = sorted({max(1, round(len(names) * i / stages)) for i in range(stages + 1)})
    copies = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        current = copy.deepcopy(network)
        done = 0
        for count in counts:
            for name in names[::-1][done:count]:
                current.get_submodule(name).reset_parameters()  # type: ignore[operator]
            done = count
            copies.append((names[::-1][count - 1], copy.deepcopy(current)))
    return copies


def rank_correlation(a_Nhw: Tensor, b_Nhw: Tensor) -> Tensor:
    """Spearman's correlation of two maps, per image (N,); equal values share a rank; NaN for undefined maps."""
    undefined = undefined_maps(a_Nhw) | undefined_maps(b_Nhw)
    return torch.where(undefined, torch.nan, rank_agreement(a_Nhw.flatten(1), b_Nhw.flatten(1)) / 100)


def randomization_check(
    network: nn.Module, images: LabelledImages, methods: Sequence[str]
) -> tuple[Sequence[str], dict[str, list[float]]]:
    """:func:`similarity_after_randomization` of maps of the images' labels, with few samples and steps a method."""
    images = images.to(device_of(network))
    x = images.normalized()

    def maps_of(network: nn.Module) -> dict[str, Tensor]:
        maps = saliency_maps(network, x, images.labels_N, methods, options=PixelOptions(samples=5, steps=8)).maps
        # Ranks of pixels are counted pair by pair: of pixel maps, those of 8×8 blocks.
        return {name: F.adaptive_avg_pool2d(m, 8) if m.shape[-1] > 16 else m for name, m in maps.items()}

    return similarity_after_randomization(network, maps_of)


def similarity_after_randomization(
    network: nn.Module, maps_of: Callable[[nn.Module], dict[str, Tensor]], *, stages: int = 4, seed: int = 0
) -> tuple[Sequence[str], dict[str, list[float]]]:
    """Names of the lowest layer drawn anew per stage, and per method the mean rank correlation with its own maps.

    ``maps_of`` makes maps (N, h, w) of the same images for a network. NaN where every map of a stage is undefined.
    """
    original = maps_of(network)
    names, found = [], {method: [] for method in original}  # type: ignore[var-annotated]
    for name, randomized in cascade(network, stages, seed):
        names.append(name)
        for method, maps in maps_of(randomized).items():
            found[method].append(float(rank_correlation(original[method], maps).nanmean()))
    return names, found
