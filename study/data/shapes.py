"""The embedded data set: ten shapes on textured backgrounds, with the true object mask of every image.

Only the shape tells the class: position, size, colours and texture are drawn independently of it. So a saliency map
can be compared with the true object, and nothing has to be downloaded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from study.data.arrays import SIDE, Arrays

CLASSES = ("disc", "square", "triangle", "ring", "cross", "star", "bar", "diamond", "crescent", "frame")
VERSION = 1  # raise it when a change here changes a pixel
SEED = 2404_15024
N_TRAIN, N_TEST = 6000, 1000


def fingerprint_text() -> str:
    """A text that changes whenever a pixel does."""
    return f"shapes version {VERSION} seed {SEED} train {N_TRAIN} test {N_TEST}"


def generate(split: str) -> Arrays:
    """The training or test images: the same bytes on every machine for one :data:`VERSION`."""
    n, stream = (N_TRAIN, 0) if split == "train" else (N_TEST, 1)
    rng = np.random.Generator(np.random.PCG64([SEED, stream]))
    labels = np.arange(n) % len(CLASSES)
    rng.shuffle(labels)
    masks = _masks(rng, labels)
    images = _paint(rng, masks)
    return Arrays(images, labels.astype(np.int64), None, masks)


def _masks(rng: np.random.Generator, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n, 32, 32): each shape at a random place, size and (slight) turn."""
    n = len(labels)
    radius = rng.uniform(7.0, 11.0, n)[:, None, None]
    cx, cy = (rng.uniform(radius[:, 0, 0], SIDE - radius[:, 0, 0])[:, None, None] for _ in range(2))
    turn = rng.uniform(-0.25, 0.25, n)[:, None, None]
    grid = np.arange(SIDE) + 0.5
    dx, dy = grid[None, None, :] - cx, grid[None, :, None] - cy
    x = (np.cos(turn) * dx + np.sin(turn) * dy) / radius
    y = (np.cos(turn) * dy - np.sin(turn) * dx) / radius
    r = np.hypot(x, y)
    angle = np.arctan2(x, -y)
    box = np.maximum(np.abs(x), np.abs(y))
    spoke = np.abs((angle * 5 / (2 * np.pi)) % 1 - 0.5) * 2  # 1 at the star's points, 0 between them
    inside = {
        "disc": r < 0.8,
        "square": box < 0.72,
        "triangle": (y < 0.7) & (y > -0.9 + 1.9 * np.abs(x)),
        "ring": (r < 0.95) & (r > 0.5),
        "cross": (np.minimum(np.abs(x), np.abs(y)) < 0.28) & (box < 0.9),
        "star": r < 0.4 + 0.6 * spoke**2,
        "bar": (np.abs(y) < 0.35) & (np.abs(x) < 1.0),
        "diamond": np.abs(x) + np.abs(y) < 0.98,
        "crescent": (r < 0.95) & (np.hypot(x - 0.45, y) > 0.75),
        "frame": (box < 0.85) & (box > 0.45),
    }
    masks = np.zeros((n, SIDE, SIDE), bool)
    for i, name in enumerate(CLASSES):
        masks[labels == i] = inside[name][labels == i]
    return masks


def _paint(rng: np.random.Generator, masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(n, 3, 32, 32): object and background each of a random colour and texture, and pixel noise over both."""
    n = len(masks)
    ground, figure = rng.uniform(0.15, 0.85, (2, n, 3))
    # Colours too near each other are moved apart, or some shapes could not be seen.
    gap = figure - ground
    distance = np.abs(gap).mean(1, keepdims=True)
    figure = np.clip(figure + np.where(distance < 0.3, np.sign(gap) * 0.3, 0), 0, 1)
    painted = np.where(
        masks[:, None],
        figure[:, :, None, None] + _texture(rng, n),
        ground[:, :, None, None] + _texture(rng, n),
    )
    painted += rng.normal(0, 0.05, painted.shape)
    return (np.clip(painted, 0, 1) * 255).round().astype(np.uint8)


def _texture(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """(n, 1, 32, 32): two gratings of random direction, period and strength."""
    grid = np.arange(SIDE)
    total = np.zeros((n, SIDE, SIDE))
    for _ in range(2):
        direction, phase = rng.uniform(0, 2 * np.pi, (2, n, 1, 1))
        frequency = 2 * np.pi / rng.uniform(3, 12, (n, 1, 1))
        wave = grid[None, None, :] * np.cos(direction) + grid[None, :, None] * np.sin(direction)
        total += rng.uniform(0.015, 0.08, (n, 1, 1)) * np.sin(frequency * wave + phase)
    return total[:, None]
