"""A source of images, its fixed splits, and the one way to open it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.config import DataConfig, TrialConfig
from study.data import archive, download, parquet, shapes
from study.data.arrays import Arrays
from study.data.cache import cached, default_folder, hash_files
from study.errors import ArtifactError, InputError, StorageError
from study.names import MODEL_CONFIG_FILE

#: Mean and standard deviation of the training pixels in [0, 1], per channel.
_CIFAR = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_SHAPES = ((0.5, 0.5, 0.5), (0.24, 0.24, 0.24))


@dataclass(frozen=True)
class Split:
    """``images`` (n, 3, 32, 32) uint8, ``labels`` (n,) int64, ``masks`` (n, 32, 32) bool where the truth is known.

    ``indices`` (n,) are the rows in the source's own order.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class _Source:
    """Where a split comes from: its cache key, and how to decode it."""

    folder: Path | None

    def files(self, split: str) -> list[Path]:
        assert self.folder is not None
        if archive.is_archive(self.folder):
            names = ("train", "meta") if split == "train" else ("test",)
            return [self.folder / name for name in names]
        return parquet.files_of(self.folder, split)

    def fingerprint(self, cache_folder: Path, split: str) -> str:
        if self.folder is None:
            return hashlib.sha256(f"{shapes.fingerprint_text()} {split}".encode()).hexdigest()
        files = self.files(split)
        try:
            return hash_files(cache_folder, files)
        except OSError as error:
            raise StorageError(
                f"cannot be read ({error.strerror}); fetch the data again", file=error.filename
            ) from None

    def read(self, split: str, tick: Callable[[int], None]) -> Arrays:
        if self.folder is None:
            return shapes.generate(split)
        if archive.is_archive(self.folder):
            return archive.read(self.folder, split, tick)
        return parquet.read(self.files(split), tick)

    def classes(self, labels: str) -> tuple[str, ...]:
        if self.folder is None:
            return shapes.CLASSES
        names = (
            archive.class_names(self.folder)
            if archive.is_archive(self.folder)
            else parquet.class_names(self.files("train")[0])
        )
        chosen = names[0 if labels == "fine" else 1]
        n = parquet.N_FINE if labels == "fine" else parquet.N_COARSE
        return chosen if chosen is not None and len(chosen) == n else tuple(f"class {i}" for i in range(n))


class Dataset:
    """Opened images: ``train`` and ``validation`` at hand, the test split behind a call.

    ``fingerprint`` is the SHA-256 of the training content; ``mean`` and ``std`` are per channel in [0, 1].
    """

    def __init__(self, config: DataConfig, source: _Source, folder: Path, progress: bool) -> None:
        self._config = config
        self._source = source
        self._folder = folder
        self._progress = progress
        if source.folder is None and config.labels == "coarse":
            raise InputError("shapes has no coarse labels; use labels: fine", key="data.labels")
        self.fingerprint = source.fingerprint(folder, "train")
        self.classes = source.classes(config.labels)
        self.n_classes = len(self.classes)
        self.mean, self.std = _SHAPES if source.folder is None else _CIFAR
        arrays = self._arrays("train", self.fingerprint)
        labels = self._labels(arrays)
        train, validation = split_rows(labels, config)
        self.train = self._split(arrays, labels, train)
        self.validation = self._split(arrays, labels, validation)
        unlimited = config.validation_images is None
        self._all_validation = (
            validation if unlimited else split_rows(labels, dataclasses.replace(config, validation_images=None))[1]
        )

    @property
    def test_fingerprint(self) -> str:
        """SHA-256 of the test split's content, of which nothing is decoded. Raises :class:`InputError` without one."""
        return self._source.fingerprint(self._folder, "test")

    def test(self) -> Split:
        """The test split. Opening it is for the final evaluation alone: choose nothing by what it shows."""
        arrays = self._arrays("test", self.test_fingerprint)
        labels = self._labels(arrays)
        return self._split(arrays, labels, np.arange(len(labels)))

    def calibration(self, images: int) -> Split:
        """The last ``images`` of all validation rows, or half of these where there are fewer than twice as many.

        Whatever ``validation_images`` leaves out is among them first, so that few of the images at hand are reserved.
        """
        arrays = self._arrays("train", self.fingerprint)
        return self._split(arrays, self._labels(arrays), self._all_validation[self._scored(images) :])

    def scored(self, images: int | None, calibration: int) -> Split:
        """The first ``images`` (None: all) of the validation split, without those that calibration reserves."""
        n = min(images or len(self.validation.labels), self._scored(calibration))
        whole = self.validation
        masks = None if whole.masks is None else whole.masks[:n]
        return Split(whole.images[:n], whole.labels[:n], masks, whole.indices[:n])

    def _scored(self, calibration: int) -> int:
        """How many of all validation rows may be scored."""
        return max(len(self._all_validation) - calibration, len(self._all_validation) // 2)

    def _arrays(self, split: str, fingerprint: str) -> Arrays:
        def make() -> Arrays:
            with _ticks(self._progress, f"decoding {split} images (once)") as tick:
                return self._source.read(split, tick)

        return cached(self._folder, fingerprint, make)

    def _labels(self, arrays: Arrays) -> NDArray[np.int64]:
        labels = arrays.fine if self._config.labels == "fine" else arrays.coarse
        assert labels is not None
        return np.asarray(labels)

    @staticmethod
    def _split(arrays: Arrays, labels: NDArray[np.int64], rows: NDArray[np.int64]) -> Split:
        masks = None if arrays.masks is None else arrays.masks[rows]
        return Split(arrays.images[rows], labels[rows], masks, rows)


def split_rows(labels: NDArray[np.int64], config: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and validation rows: stratified, drawn from ``split_seed``, in an order mixed over the classes.

    The first k rows of either are themselves nearly stratified, so that ``train_images: k`` is a fair subset. Raises
    :class:`InputError` where more are asked for than there are.
    """
    rng = np.random.Generator(np.random.PCG64(config.split_seed))
    parts: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    places: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        n_validation = max(1, round(len(rows) * config.validation_fraction))
        for i, part in enumerate((rows[n_validation:], rows[:n_validation])):
            parts[i].append(part)
            # Spread every class evenly over (0, 1), with a jitter: sorting by place interleaves the classes.
            places[i].append((np.arange(len(part)) + rng.uniform(size=len(part))) / max(1, len(part)))
    out = []
    for i, (name, wanted) in enumerate((("train", config.train_images), ("validation", config.validation_images))):
        rows = np.concatenate(parts[i])[np.argsort(np.concatenate(places[i]), kind="stable")]
        if wanted is not None and wanted > len(rows):
            raise InputError(f"{wanted} are asked for and the {name} split has {len(rows)}", key=f"data.{name}_images")
        out.append(rows[:wanted])
    if not len(out[0]):
        raise InputError("leaves no training images; there are too few of them", key="data.validation_fraction")
    return out[0], out[1]


def open_dataset(config: DataConfig, *, cache: Path | None = None, progress: bool = False) -> Dataset:
    """Open a source, decoding it into the cache the first time. ``cache`` replaces the default folder of the cache.

    Raises :class:`StudyError`, one line naming the file or key and the remedy, for anything that cannot be used.
    """
    folder = cache or default_folder()
    return Dataset(config, _source(config.source, folder, progress), folder, progress)


def content_fingerprint(source: str) -> str:
    """SHA-256 (hex) of the training content of a source, whatever its path."""
    folder = default_folder()
    return _source(source, folder, progress=False).fingerprint(folder, "train")


def _source(source: str, cache_folder: Path, progress: bool) -> _Source:
    if source == "shapes":
        return _Source(None)
    if source == "cifar100":
        return _Source(download.cifar100(cache_folder, progress))
    folder = Path(source)
    if not os.path.isdir(folder):  # False too where a path is longer than the system takes, or holds a NUL
        raise InputError(
            f"data {source}: no such folder; give shapes, cifar100, or a folder of Parquet or cifar-100-python files"
        )
    return _Source(folder)


@contextlib.contextmanager
def _ticks(progress: bool, text: str) -> Iterator[Callable[[int], None]]:
    if not progress:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda n: bar.advance(task, n)


def open_card_data(card: Mapping[str, Any], source: str | None) -> tuple[TrialConfig, Dataset]:
    """The images that a network was trained and scored on; ``source`` says where they are on this machine.

    Raises :class:`InputError` where they are missing or their content is another.
    """
    try:
        config, wanted = TrialConfig.from_dict(dict(card["config"])), str(card["data_fingerprint"])
    except (KeyError, TypeError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ArtifactError(f"is not one of this program ({what})", file=MODEL_CONFIG_FILE) from None
    data = dataclasses.replace(config.data, source=source) if source else config.data
    dataset = open_dataset(data)
    if dataset.fingerprint != wanted:
        raise InputError(
            f"--data {data.source}: its content is not that of the study's images (fingerprint "
            f"{dataset.fingerprint[:12]}… instead of {wanted[:12]}…); name the folder that it used"
        )
    return config, dataset
