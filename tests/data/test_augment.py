"""Augmentation against a slow reference that replays the generator's draws image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from study.config import CROP_MODES
from study.data.augment import augment, normalize


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (6, 3, 32, 32), generator=generator(1), dtype=torch.uint8)


def slow_crop_and_flip(images: Tensor, draws: torch.Generator, padding: int, flip: bool, mode: str = "zero") -> Tensor:
    n, channels, height, width = images.shape
    corners = torch.randint(0, 2 * padding + 1, (2, n), generator=draws) if padding else torch.zeros(2, n).long()
    mirrored = torch.rand(n, generator=draws) < 0.5 if flip else torch.zeros(n, dtype=torch.bool)
    out = torch.zeros_like(images)
    for i in range(n):
        around = ((0, 0), (padding, padding), (padding, padding))
        padded = np.pad(images[i].numpy(), around, mode="constant" if mode == "zero" else "reflect")
        assert padded.shape == (channels, height + 2 * padding, width + 2 * padding)
        top, left = int(corners[0, i]), int(corners[1, i])
        crop = padded[:, top : top + height, left : left + width]
        out[i] = torch.from_numpy((crop[:, :, ::-1] if mirrored[i] else crop).copy())
    return out


def slow_rotate(images: Tensor, draws: torch.Generator, degrees: float) -> Tensor:
    """Every output pixel: the bilinear mean of the four pixels around the point it comes from, zero outside."""
    n, channels, height, width = images.shape
    angles = (torch.rand(n, generator=draws) * 2 - 1) * math.radians(degrees)
    out = np.zeros(images.shape)
    for i in range(n):
        cos, sin = math.cos(angles[i]), math.sin(angles[i])
        image = images[i].numpy().astype(np.float64)
        for row in range(height):
            for column in range(width):
                x, y = column - (width - 1) / 2, row - (height - 1) / 2
                from_x, from_y = cos * x - sin * y + (width - 1) / 2, sin * x + cos * y + (height - 1) / 2
                for r in (math.floor(from_y), math.floor(from_y) + 1):
                    for c in (math.floor(from_x), math.floor(from_x) + 1):
                        if 0 <= r < height and 0 <= c < width:
                            weight = (1 - abs(from_y - r)) * (1 - abs(from_x - c))
                            out[i, :, row, column] += weight * image[:, r, c]
    assert channels == 3
    return torch.from_numpy(out)


@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 4, 16])
def test_crop_and_flip_equal_the_reference(images: Tensor, padding: int, flip: bool, mode: str) -> None:
    fast = augment(images, generator(), padding=padding, flip=flip, rotation=0.0, mode=mode)
    assert torch.equal(fast, slow_crop_and_flip(images, generator(), padding, flip, mode))


def test_rotation_equals_the_reference(images: Tensor) -> None:
    fast = augment(images[:2], generator(), padding=0, flip=False, rotation=30.0)
    slow = slow_rotate(images[:2], generator(), 30.0)
    assert (fast.double() - slow).abs().max() <= 0.51  # half a level of rounding
    assert not torch.equal(fast, images[:2])


def test_rotation_comes_before_crop_and_flip(images: Tensor) -> None:
    whole = augment(images, generator(), padding=4, flip=True, rotation=20.0)
    draws = generator()
    turned = augment(images, draws, padding=0, flip=False, rotation=20.0)
    assert torch.equal(whole, slow_crop_and_flip(turned, draws, 4, True))


@pytest.mark.parametrize("rotation", [0.0, 15.0, 180.0])
def test_deterministic_from_the_generator_alone(images: Tensor, rotation: float) -> None:
    before = images.clone()
    torch.manual_seed(1)
    first = augment(images, generator(), padding=4, flip=True, rotation=rotation)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = augment(images, generator(), padding=4, flip=True, rotation=rotation)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, augment(images, generator(6), padding=4, flip=True, rotation=rotation))
    assert torch.equal(images, before), "the stored images are changed"
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    assert first.is_contiguous()


def test_nothing_asked_nothing_done(images: Tensor) -> None:
    draws = generator()
    state = draws.get_state()
    assert torch.equal(augment(images, draws, padding=0, flip=False, rotation=0.0), images)
    assert torch.equal(draws.get_state(), state)


def test_every_offset_and_both_sides_occur() -> None:
    """One bright pixel per image: where it lands tells the crop and the flip."""
    images = torch.zeros(2000, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 16, 12] = 255
    out = augment(images, generator(), padding=2, flip=True, rotation=0.0)
    assert (out.flatten(1) == 255).sum(1).eq(1).all()
    places = {divmod(int(i), 32) for i in out.flatten(1).argmax(1)}
    columns = {*range(10, 15), *range(31 - 14, 31 - 9)}
    assert places == {(row, column) for row in range(14, 19) for column in columns}


def test_empty_batch() -> None:
    images = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    assert augment(images, generator(), padding=4, flip=True, rotation=0.0).shape == images.shape


def test_normalize_and_back(images: Tensor) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    normal = normalize(images, mean, std)
    assert normal.dtype == torch.float32
    assert normal.shape == images.shape
    back = (normal * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1)) * 255
    assert torch.equal(back.round().to(torch.uint8), images)
    assert normal[0, 1, 2, 3].item() == pytest.approx((images[0, 1, 2, 3].item() / 255 - 0.4) / 0.25, rel=1e-5)
