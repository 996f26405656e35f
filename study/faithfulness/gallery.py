"""Pictures of maps: one row per image, one column per method, for one network or several below each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from study.data.labelled import LabelledImages
from study.faithfulness.masking import undefined_maps, upsampled_masks
from study.networks.state import device_of
from study.saliency import saliency_maps

_MAP = "magma"  # rises evenly in lightness: readable in grey and with every kind of colour blindness
_OPACITY = 0.6


def draw_gallery(
    file: Path,
    images_NCHW: NDArray[np.uint8],
    titles: Sequence[str],
    maps: Mapping[str, Mapping[str, Tensor]],
    captions: Mapping[str, Sequence[str]],
) -> None:
    """Write a PNG: the image, then every method's map over it, for every network of ``maps`` (name to method to maps).

    ``titles`` (N) name the images, ``captions`` per network what it says of each. An undefined map is left grey.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    methods = list(dict.fromkeys(m for of_network in maps.values() for m in of_network))
    n, height, width = len(images_NCHW), images_NCHW.shape[2], images_NCHW.shape[3]
    rows = n * len(maps)
    figure, axes = plt.subplots(
        rows, 1 + len(methods), figsize=(1.35 * (1 + len(methods)) + 2, 1.45 * rows + 0.5), dpi=110, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for i in range(n):
        grey = images_NCHW[i].mean(0)
        for k, (network, of_network) in enumerate(maps.items()):
            row = axes[i * len(maps) + k]
            row[0].imshow(images_NCHW[i].transpose(1, 2, 0), interpolation="nearest")
            label = f"{titles[i]}\n\n{network} says\n{captions[network][i]}"
            row[0].set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center", labelpad=8)
            for axis, method in zip(row[1:], methods, strict=True):
                axis.imshow(grey, cmap="gray", interpolation="nearest")
                raw = of_network[method][i : i + 1]
                if not undefined_maps(raw).item():
                    axis.imshow(_shown(raw, (height, width)), cmap=_MAP, alpha=_OPACITY, vmin=0, vmax=1)
    for axis, name in zip(axes[0], ("image", *methods), strict=True):
        axis.set_title(name.replace("_", " "), fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


def draw_networks(
    file: Path,
    networks: Mapping[str, nn.Module],
    images: LabelledImages,
    classes: Sequence[str],
    methods: Sequence[str],
) -> None:
    """:func:`draw_gallery` of networks by name; ``classes``: the labels' names."""
    maps, captions = {}, {}
    for name, network in networks.items():
        on_device = images.to(device_of(network))
        found = saliency_maps(network, on_device.normalized(), on_device.labels_N, methods)
        maps[name] = {method: m.cpu() for method, m in found.maps.items()}
        p, predicted = found.logits.softmax(1).max(1)
        captions[name] = [f"{classes[c]} {100 * q:.0f} %" for q, c in zip(p.tolist(), predicted.tolist(), strict=True)]
    titles = [classes[c] for c in images.labels_N.tolist()]
    draw_gallery(file, images.pixels_NCHW.numpy(), titles, maps, captions)


def overlaid(images_NCHW: NDArray[np.uint8], raw_Nhw: Tensor) -> NDArray[np.uint8]:
    """(N, H, W, 3): every map over its image in grey, as :func:`draw_gallery` shows it; none where it is undefined."""
    from matplotlib import colormaps

    out = np.repeat(images_NCHW.mean(1)[..., None], 3, axis=-1)
    for i in np.flatnonzero(~undefined_maps(raw_Nhw).numpy()):
        shown = _shown(raw_Nhw[i : i + 1], (images_NCHW.shape[2], images_NCHW.shape[3]))
        out[i] = (1 - _OPACITY) * out[i] + _OPACITY * 255 * colormaps[_MAP](np.clip(shown, 0, 1))[..., :3]
    return np.asarray(out.round(), np.uint8)


def _shown(raw_1hw: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """In [0, 1] at the image's size. Of pixel maps the brightest hundredth is clipped: one pixel would dim the rest."""
    if tuple(raw_1hw.shape[1:]) == size:
        raw_1hw = raw_1hw.clamp(max=float(torch.quantile(raw_1hw, 0.99)))
    return np.asarray(F.relu(upsampled_masks(raw_1hw, size))[0, 0].numpy())
