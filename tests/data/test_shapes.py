"""The embedded set: the same bytes everywhere, true masks, and a class that only the shape gives away."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from study.config import DataConfig
from study.data import open_dataset, shapes
from study.data.arrays import Arrays


@pytest.fixture(scope="module")
def held_out() -> Arrays:
    return shapes.generate("test")


def digest(arrays: Arrays) -> str:
    assert arrays.masks is not None
    parts = (arrays.images, arrays.fine.astype("<i8"), arrays.masks)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@pytest.mark.slow
def test_golden_bytes_of_train() -> None:
    """If this fails after a change of the generator, raise ``shapes.VERSION`` and pin the new value."""
    assert shapes.VERSION == 1
    assert digest(shapes.generate("train")) == "a607e14109730c96ef2a9e8212a0563f7c1748e88088eefc1f93511c1f488ade"


def test_golden_bytes_of_test(held_out: Arrays) -> None:
    assert digest(held_out) == "8b4682b37eeb05d3b98389ef2c91029d2e78ff3b6d8deb102d464cee96fc375d"


def test_types_and_balance(held_out: Arrays) -> None:
    assert held_out.images.shape == (1000, 3, 32, 32)
    assert held_out.images.dtype == np.uint8
    assert held_out.fine.dtype == np.int64
    assert held_out.coarse is None
    assert (np.bincount(held_out.fine) == 100).all()
    assert len(shapes.CLASSES) == 10


def test_deterministic_and_train_is_not_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "N_TRAIN", 50)
    monkeypatch.setattr(shapes, "N_TEST", 50)
    train, again, test = shapes.generate("train"), shapes.generate("train"), shapes.generate("test")
    assert digest(train) == digest(again)
    rows = {image.tobytes() for image in train.images}
    assert len(rows) == 50
    assert not rows & {image.tobytes() for image in test.images}
    assert not np.array_equal(train.fine, test.fine)


def test_numpys_global_generator_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "N_TEST", 10)
    np.random.seed(1)
    first = digest(shapes.generate("test"))
    np.random.seed(2)
    assert digest(shapes.generate("test")) == first


def test_masks_show_the_object(held_out: Arrays) -> None:
    """Every object can be seen: its pixels differ from the ground's in some channel, image by image."""
    masks, images = held_out.masks, held_out.images.astype(np.float64)
    assert masks is not None
    assert masks.dtype == bool
    area = masks.mean((1, 2))
    assert area.min() > 0.02
    assert area.max() < 0.6
    weight = masks[:, None]
    inside = (images * weight).sum((2, 3)) / weight.sum((2, 3))
    outside = (images * ~weight).sum((2, 3)) / (~weight).sum((2, 3))
    contrast = np.abs(inside - outside).mean(1)
    assert contrast.mean() > 60
    assert contrast.min() > 20


def test_every_class_has_a_shape_of_its_own(held_out: Arrays) -> None:
    assert held_out.masks is not None
    areas = [held_out.masks[held_out.fine == i].mean() for i in range(10)]
    assert len({round(float(area), 4) for area in areas}) == 10


def test_mean_colour_does_not_give_the_class_away(held_out: Arrays) -> None:
    """Nearest class centre in mean colour and its spread: hardly above the 10 % of chance."""
    images = held_out.images / 255
    features = np.concatenate([images.mean((2, 3)), images[:, :, :4, :4].mean((2, 3))], 1)
    labels = held_out.fine
    half = len(labels) // 2
    centres = np.stack([features[:half][labels[:half] == i].mean(0) for i in range(10)])
    nearest = np.linalg.norm(features[half:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels[half:]).mean() < 0.16


@pytest.mark.slow
def test_opened() -> None:
    opened = open_dataset(DataConfig())
    assert len(opened.train.labels) == 5400
    assert len(opened.validation.labels) == 600
    assert (np.bincount(opened.validation.labels) == 60).all()
    assert opened.classes == shapes.CLASSES
    assert opened.train.masks is not None
    assert opened.train.masks.shape == (5400, 32, 32)
    assert np.allclose(opened.train.images.mean((0, 2, 3)) / 255, opened.mean, atol=0.02)
    assert np.allclose(opened.train.images.std((0, 2, 3)) / 255, opened.std, atol=0.03)
    assert len(opened.test().labels) == 1000
