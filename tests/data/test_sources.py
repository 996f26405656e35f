"""What the readers give back is what was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from study.config import DataConfig
from study.data import Dataset, open_dataset

Write = Callable[..., Path]


def in_source_order(opened: Dataset) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Training and validation images and labels, put back where their indices say."""
    rows = np.concatenate([opened.train.indices, opened.validation.indices])
    assert np.array_equal(np.sort(rows), np.arange(len(rows)))
    order = np.argsort(rows)
    images = np.concatenate([opened.train.images, opened.validation.images])[order]
    return images, np.concatenate([opened.train.labels, opened.validation.labels])[order]


@pytest.mark.parametrize("labels", ["fine", "coarse"])
def test_parquet_round_trip(write_parquet: Write, pixels: NDArray[np.uint8], labels: str) -> None:
    """Two training files and a test file."""
    write_parquet("train-00000-of-00002.parquet", images=pixels[:25])
    write_parquet("train-00001-of-00002.parquet", images=pixels[25:])
    folder = write_parquet("test-00000-of-00001.parquet", images=pixels[::-1]).parent
    opened = open_dataset(DataConfig(source=str(folder), labels=labels))
    images, classes = in_source_order(opened)
    assert images.dtype == np.uint8
    assert np.array_equal(images, pixels)
    n = 4 if labels == "fine" else 2
    assert classes.dtype == np.int64
    assert np.array_equal(classes, np.concatenate([np.arange(25) % n, np.arange(15) % n]))
    test = opened.test()
    assert np.array_equal(test.images, pixels[::-1])
    assert np.array_equal(test.labels, np.arange(40) % n)
    assert np.array_equal(test.indices, np.arange(40))
    assert opened.train.masks is None
    assert opened.n_classes == len(opened.classes) == (100 if labels == "fine" else 20)
    assert opened.classes[3] == "class 3"


def test_names_in_the_parquet_schema(write_parquet: Write) -> None:
    names = {"fine_label": [f"f{i}" for i in range(100)], "coarse_label": [f"c{i}" for i in range(20)]}
    source = str(write_parquet(names=names).parent)
    assert open_dataset(DataConfig(source=source)).classes == tuple(names["fine_label"])
    assert open_dataset(DataConfig(source=source, labels="coarse")).classes == tuple(names["coarse_label"])


def test_too_few_names_are_not_used(write_parquet: Write) -> None:
    source = str(write_parquet(names={"fine_label": ["a"], "coarse_label": ["b"]}).parent)
    assert open_dataset(DataConfig(source=source)).classes[0] == "class 0"


@pytest.mark.parametrize("labels", ["fine", "coarse"])
def test_archive_round_trip(write_archive: Write, pixels: NDArray[np.uint8], labels: str) -> None:
    write_archive("test", data=pixels[::-1].reshape(40, -1))
    opened = open_dataset(DataConfig(source=str(write_archive()), labels=labels))
    images, classes = in_source_order(opened)
    assert np.array_equal(images, pixels)
    assert np.array_equal(classes, np.arange(40) % (4 if labels == "fine" else 2))
    assert np.array_equal(opened.test().images, pixels[::-1])
    assert opened.classes[7] == f"{labels} 7"
    assert opened.n_classes == (100 if labels == "fine" else 20)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_real_cifar100(cifar100_folder: Path) -> None:
    config = DataConfig(source=str(cifar100_folder))
    opened = open_dataset(config)
    assert len(opened.train.labels) == 45_000
    assert len(opened.validation.labels) == 5_000
    assert not np.intersect1d(opened.train.indices, opened.validation.indices).size
    assert opened.n_classes == 100
    assert (np.bincount(opened.train.labels) == 450).all()
    assert (np.bincount(opened.validation.labels) == 50).all()
    assert len(set(opened.classes)) == 100
    assert "class 0" not in opened.classes
    mean = opened.train.images.mean((0, 2, 3)) / 255
    assert np.allclose(mean, opened.mean, atol=0.005)
    again = open_dataset(config)
    assert again.fingerprint == opened.fingerprint
    assert np.array_equal(again.train.indices, opened.train.indices)
    assert np.array_equal(again.validation.images, opened.validation.images)
