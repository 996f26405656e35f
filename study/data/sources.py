"""Where images come from: the embedded shapes, a ``cifar-100-python`` folder, a folder of Parquet files."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from study.data import archive, download, parquet, shapes
from study.data.arrays import Arrays
from study.data.cache import hash_files
from study.errors import InputError, StorageError

Channels = tuple[float, float, float]


class Source(ABC):
    """Decodes splits named ``train`` and ``test``. ``mean`` and ``std`` are those of training pixels in [0, 1]."""

    mean: Channels
    std: Channels

    @abstractmethod
    def fingerprint(self, cache_folder: Path, split: str) -> str:
        """SHA-256 (hex) of the content of a split, whatever its path. Raises :class:`StudyError`."""

    @abstractmethod
    def read(self, split: str, tick: Callable[[int], None]) -> Arrays:
        """Decode a split; ``tick(n)`` is called after every n images. Raises :class:`InputError`."""

    @abstractmethod
    def classes(self, labels: str) -> tuple[str, ...]:
        """Names of the classes, ``labels`` being fine or coarse. Raises :class:`InputError` for labels it lacks."""


class Shapes(Source):
    """Generated images, see :mod:`study.data.shapes`."""

    mean, std = (0.5, 0.5, 0.5), (0.24, 0.24, 0.24)

    def fingerprint(self, cache_folder: Path, split: str) -> str:
        return hashlib.sha256(f"{shapes.fingerprint_text()} {split}".encode()).hexdigest()

    def read(self, split: str, tick: Callable[[int], None]) -> Arrays:
        return shapes.generate(split)

    def classes(self, labels: str) -> tuple[str, ...]:
        if labels == "coarse":
            raise InputError("shapes has no coarse labels; use labels: fine", key="data.labels")
        return shapes.CLASSES


class Folder(Source):
    """CIFAR-100, or images of that kind, in the files of a folder."""

    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def files(self, split: str) -> list[Path]:
        """The files that determine a split. Raises :class:`InputError` where there are none."""

    @abstractmethod
    def class_names(self) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        """Names of fine and coarse classes, each None where the files do not have them."""

    def fingerprint(self, cache_folder: Path, split: str) -> str:
        files = self.files(split)
        try:
            return hash_files(cache_folder, files)
        except OSError as error:
            raise StorageError(
                f"cannot be read ({error.strerror}); fetch the data again", file=error.filename
            ) from None

    def classes(self, labels: str) -> tuple[str, ...]:
        fine, coarse = self.class_names()
        chosen, n = (fine, parquet.N_FINE) if labels == "fine" else (coarse, parquet.N_COARSE)
        return chosen if chosen is not None and len(chosen) == n else tuple(f"class {i}" for i in range(n))


class Archive(Folder):
    """The published pickles, see :mod:`study.data.archive`."""

    def files(self, split: str) -> list[Path]:
        return [self.folder / name for name in (("train", "meta") if split == "train" else ("test",))]

    def read(self, split: str, tick: Callable[[int], None]) -> Arrays:
        return archive.read(self.folder, split, tick)

    def class_names(self) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        return archive.class_names(self.folder)


class ParquetFolder(Folder):
    """Parquet files in the schema of the public set, see :mod:`study.data.parquet`."""

    def files(self, split: str) -> list[Path]:
        return parquet.files_of(self.folder, split)

    def read(self, split: str, tick: Callable[[int], None]) -> Arrays:
        return parquet.read(self.files(split), tick)

    def class_names(self) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        return parquet.class_names(self.files("train")[0])


def open_source(source: str, cache_folder: Path, progress: bool) -> Source:
    """``shapes``, ``cifar100`` (downloaded into the cache the first time) or a folder. Raises :class:`InputError`."""
    if source == "shapes":
        return Shapes()
    if source == "cifar100":
        return Archive(download.cifar100(cache_folder, progress))
    folder = Path(source)
    if not os.path.isdir(folder):  # False too where a path is longer than the system takes, or holds a NUL
        raise InputError(
            f"data {source}: no such folder; give shapes, cifar100, or a folder of Parquet or cifar-100-python files"
        )
    return Archive(folder) if archive.is_archive(folder) else ParquetFolder(folder)
