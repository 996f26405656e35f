"""Images of a source in their fixed splits, and the one way to open them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.config import DataConfig, TrialConfig
from study.data.arrays import Arrays
from study.data.cache import cached, default_folder
from study.data.sources import Source, open_source
from study.errors import ArtifactError, InputError
from study.names import MODEL_CONFIG_FILE


@dataclass(frozen=True)
class Split:
    """``images`` (n, 3, 32, 32) uint8, ``labels`` (n,) int64, ``masks`` (n, 32, 32) bool where the truth is known.

    ``indices`` (n,) are the rows in the source's own order.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None
    indices: NDArray[np.int64]


class Dataset:
    """Opened images: ``train`` and ``validation`` as attributes, the test split behind a call.

    ``fingerprint`` is the SHA-256 of the training content; ``mean`` and ``std`` are per channel in [0, 1].
    """

    def __init__(self, config: DataConfig, source: Source, folder: Path, progress: bool) -> None:
        self._config = config
        self._source = source
        self._folder = folder
        self._progress = progress
        self.fingerprint = source.fingerprint(folder, "train")
        self.classes = source.classes(config.labels)
        self.n_classes = len(self.classes)
        self.mean, self.std = source.mean, source.std
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
        """SHA-256 of the test split's content, of which nothing is decoded. Raises :class:`StudyError` without one."""
        return self._source.fingerprint(self._folder, "test")

    def test(self) -> Split:
        """The test split. It is for the final evaluation alone: choose nothing by what it shows."""
        arrays = self._arrays("test", self.test_fingerprint)
        labels = self._labels(arrays)
        return self._split(arrays, labels, np.arange(len(labels)))

    def calibration(self, images: int) -> Split:
        """The images for fitting a temperature: the last ``images`` of all validation rows, at most half of them.

        Rows that ``validation_images`` leaves out come last, so they are taken first.
        """
        arrays = self._arrays("train", self.fingerprint)
        return self._split(arrays, self._labels(arrays), self._all_validation[self._n_scored(images) :])

    def scored(self, images: int | None, calibration: int) -> Split:
        """The first ``images`` (None: all) of the validation split, without the rows of :meth:`calibration`."""
        n = min(images or len(self.validation.labels), self._n_scored(calibration))
        whole = self.validation
        masks = None if whole.masks is None else whole.masks[:n]
        return Split(whole.images[:n], whole.labels[:n], masks, whole.indices[:n])

    def _n_scored(self, calibration: int) -> int:
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
    """Open a source; the first time, its images are decoded into the cache. ``cache``: another folder for it.

    Raises :class:`StudyError` where the source or a key of ``config`` cannot be used.
    """
    folder = cache or default_folder()
    return Dataset(config, open_source(config.source, folder, progress), folder, progress)


def content_fingerprint(source: str) -> str:
    """SHA-256 (hex) of the training content of a source, whatever its path."""
    folder = default_folder()
    return open_source(source, folder, progress=False).fingerprint(folder, "train")


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
    """The configuration in a network's card, and its images; ``source``: where they are on this machine.

    Raises :class:`StudyError` where they are missing or have other content than those of the training.
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
