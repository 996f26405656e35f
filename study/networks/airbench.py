"""Networks that learn real CIFAR-100 in minutes on a CPU core, after the public CIFAR speed records.

KellerJordan/cifar10-airbench (2024) with ReLU in place of GELU and a linear layer on the mean map, so that the network
can be guided and mapped. At 32x32 pixels width 16 costs 9.7 million multiply-adds an image and width 32 costs 31.6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WHITENED = 2  # pixels, the side of a patch that is whitened
#: Added to the patches' eigenvalues (of normalized pixels): a direction that hardly varies is not blown up to noise.
_WHITENING_EPS = 5e-4
_CHUNK = 500  # images whose patches are in memory at once


class Airbench(nn.Module):
    """A whitening convolution that is not trained, two blocks of ``width`` and 4 ``width`` channels, one convolution.

    Until :meth:`fit_to` has seen training images the first layer is a random projection.
    """

    def __init__(self, n_classes: int, *, width: int) -> None:
        super().__init__()
        n_filters = 2 * 3 * _WHITENED**2
        self.whitening = nn.Conv2d(3, n_filters, _WHITENED, bias=False)
        self.whitening.weight.requires_grad_(False)
        self.layers = nn.Sequential(
            nn.ReLU(), *_block(n_filters, width), *_block(width, 4 * width), *_convolution(4 * width, 4 * width)
        )
        self.head = nn.Linear(4 * width, n_classes)

    @torch.no_grad()
    def fit_to(self, images_NCHW: Tensor) -> None:
        """Set the fixed filters from normalized training images (N, 3, H, W), on the network's device.

        The first half of the filters are the eigenvectors of the covariance of 2x2 patches over the roots of their
        eigenvalues, largest first, so that the responses are uncorrelated and of variance 1; the second half are
        their negatives, which a rectifier would lose.
        """
        n_values = 3 * _WHITENED**2
        # In float64: a difference of two sums over millions of patches.
        total = torch.zeros(n_values, dtype=torch.float64, device=images_NCHW.device)
        products = torch.zeros(n_values, n_values, dtype=torch.float64, device=images_NCHW.device)
        n_patches = 0
        for images in images_NCHW.split(_CHUNK):
            patches = nn.functional.unfold(images.double(), _WHITENED).transpose(1, 2).flatten(0, 1)
            total += patches.sum(0)
            products += patches.T @ patches
            n_patches += len(patches)
        mean = total / n_patches
        eigenvalues, eigenvectors = torch.linalg.eigh((products / n_patches - mean.outer(mean)).cpu())
        filters = (eigenvectors / (eigenvalues + _WHITENING_EPS).sqrt()).T.flip(0)
        # An eigenvector's sign is the library's choice; the largest entry positive is the same on every machine.
        largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
        filters = (filters * largest.sign()).view(n_values, 3, _WHITENED, _WHITENED)
        self.whitening.weight.copy_(torch.cat((filters, -filters)))

    def features(self, x_NCHW: Tensor) -> Tensor:
        """Last activation map (N, 4 width, h, w), after the final rectifier; 7x7 for 32x32 images."""
        map_NKhw: Tensor = self.layers(self.whitening(x_NCHW))
        return map_NKhw

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits (N, n_classes)."""
        logits_NK: Tensor = self.head(self.features(x_NCHW).mean((2, 3)))
        return logits_NK


def _convolution(width_in: int, width: int, *, pool: bool = False) -> list[nn.Module]:
    convolution = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
    return [convolution, *([nn.MaxPool2d(2)] if pool else []), nn.BatchNorm2d(width), nn.ReLU()]


def _block(width_in: int, width: int) -> list[nn.Module]:
    """Two convolutions, the first of which halves the map."""
    return [*_convolution(width_in, width, pool=True), *_convolution(width, width)]


def airbench16(n_classes: int) -> nn.Module:
    """Up to 64 channels."""
    return Airbench(n_classes, width=16)


def airbench32(n_classes: int) -> nn.Module:
    """Up to 128 channels."""
    return Airbench(n_classes, width=32)
