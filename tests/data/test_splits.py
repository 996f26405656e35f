"""Splits: disjoint, stratified, pinned by their seed, and fair from the first row on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from study.config import DataConfig
from study.data.dataset import split_rows


def labels_of(n_classes: int = 10, each: int = 50) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(n_classes), each))


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=8),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 2**31 - 1),
)
def test_disjoint_complete_and_stratified(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    train, validation = split_rows(labels, DataConfig(validation_fraction=fraction, split_seed=seed))
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(len(labels)))
    for label, count in enumerate(counts):
        assert (labels[validation] == label).sum() == max(1, round(count * fraction))


def test_same_seed_same_rows_other_seed_others() -> None:
    labels = labels_of()
    first, second = (split_rows(labels, DataConfig(split_seed=3)) for _ in range(2))
    other = split_rows(labels, DataConfig(split_seed=4))
    for a, b, c in zip(first, second, other, strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_rows_are_pinned() -> None:
    """Every recorded study depends on these rows: a change here makes their scores incomparable."""
    train, validation = split_rows(np.arange(500) % 10, DataConfig(split_seed=0))
    digest = hashlib.sha256(np.concatenate([train, validation]).astype("<i8").tobytes()).hexdigest()
    assert digest == "f50b6582ff109fc76f59e17c8b1b19aab15411bf87f440b563bd10325163e8c4"


@pytest.mark.parametrize("k", [10, 37, 100, 250])
def test_first_rows_are_nearly_stratified(k: int) -> None:
    labels = labels_of()
    train, _ = split_rows(labels, DataConfig(train_images=k))
    assert len(train) == k
    counts = np.bincount(labels[train], minlength=10)
    assert np.abs(counts - k / 10).max() <= 1


def test_a_smaller_subset_is_the_start_of_a_larger() -> None:
    labels = labels_of()
    all_train, all_validation = split_rows(labels, DataConfig())
    train, validation = split_rows(labels, DataConfig(train_images=33, validation_images=7))
    assert np.array_equal(train, all_train[:33])
    assert np.array_equal(validation, all_validation[:7])


def test_classes_are_mixed() -> None:
    """No long run of one class, and not the same order of classes in every round."""
    labels = labels_of()
    train, _ = split_rows(labels, DataConfig())
    rounds = labels[train].reshape(-1, 10)
    assert (labels[train][1:] == labels[train][:-1]).mean() < 0.2
    assert len({tuple(row) for row in rounds}) > 30
