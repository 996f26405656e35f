"""The model-parameter randomisation check (Adebayo et al. 2018, section 4.1): an explanation of a network must change
when what the network has learned is taken from it, layer by layer from the head down.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.faithfulness.deletion import mean_ranks
from study.faithfulness.masking import undefined_maps
from study.saliency import PixelOptions, saliency_maps


def cascade(network: nn.Module, stages: int, seed: int = 0) -> list[tuple[str, nn.Module]]:
    """Copies whose last layers are drawn anew, the head alone first, at last all; each with the name of its lowest one.

    Layers are those with parameters of their own and ``reset_parameters``; batch-norm statistics are reset with them.
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
    ranks = [mean_ranks(t.flatten(1).double()) for t in (a_Nhw, b_Nhw)]
    a, b = (r - r.mean(1, keepdim=True) for r in ranks)
    correlation = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    undefined = undefined_maps(a_Nhw) | undefined_maps(b_Nhw)
    return torch.where(undefined, torch.nan, correlation)


def randomization_check(
    network: nn.Module, x_NCHW: Tensor, classes_N: Tensor, methods: Sequence[str]
) -> tuple[Sequence[str], dict[str, list[float]]]:
    """:func:`similarity_after_randomization` of saliency maps of normalised images, at a moderate cost."""

    def maps_of(network: nn.Module) -> dict[str, Tensor]:
        maps = saliency_maps(network, x_NCHW, classes_N, methods, options=PixelOptions(samples=5, steps=8)).maps
        # Ranks of pixels are counted pair by pair: of pixel maps, those of 8×8 blocks.
        return {name: F.adaptive_avg_pool2d(m, 8) if m.shape[-1] > 16 else m for name, m in maps.items()}

    return similarity_after_randomization(network.eval(), maps_of)


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
