"""Reads the original ``cifar-100-python`` folder: three pickles, none of which may run code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.data.arrays import SIDE, Arrays, check_labels
from study.data.parquet import N_COARSE, N_FINE
from study.errors import InputError, StorageError

FILES = ("train", "test", "meta")
#: All that the published files need to rebuild their arrays.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _Reader(pickle.Unpickler):
    """Refuses every global but those that rebuild numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no data set needs")
        return super().find_class(module, name)


def is_archive(folder: Path) -> bool:
    return (folder / "train").is_file() and (folder / "meta").is_file()


def read(folder: Path, split: str, tick: Callable[[int], None]) -> Arrays:
    """One split. Raises :class:`StorageError` or :class:`InputError` for a file not readable or of another kind."""
    file = folder / split
    content = _load(file)
    try:
        data = _pixels(content[b"data"])
        fine = _labels(content, b"fine_labels")
        coarse = _labels(content, b"coarse_labels")
    except KeyError as error:
        raise InputError(f"lacks {error}; fetch the archive again", file=file) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"is not CIFAR-100's ({error}); fetch the archive again", file=file) from None
    if data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE or not len(data) == len(fine) == len(coarse) > 0:
        raise InputError(
            f"holds {data.shape} bytes for {len(fine)} labels; {SIDE}×{SIDE} colour images are needed",
            file=file,
        )
    check_labels(fine, N_FINE, file, "fine_labels")
    check_labels(coarse, N_COARSE, file, "coarse_labels")
    tick(len(data))
    return Arrays(data.reshape(-1, 3, SIDE, SIDE), fine, coarse)


def class_names(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    content = _load(folder / "meta")
    try:
        return tuple(n.decode() for n in content[b"fine_label_names"]), tuple(
            n.decode() for n in content[b"coarse_label_names"]
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(f"lacks {error}; fetch the archive again", file=folder / "meta") from None


def _pixels(values: Any) -> NDArray[np.uint8]:
    pixels = np.asarray(values)
    if pixels.dtype != np.uint8:  # a cast would wrap or cut the values
        raise ValueError(f"data is {pixels.dtype}, not uint8")
    return pixels


def _labels(content: dict[bytes, Any], key: bytes) -> NDArray[np.int64]:
    labels = np.asarray(content[key])
    if labels.ndim != 1 or (len(labels) and labels.dtype.kind not in "iu"):
        raise ValueError(f"{key.decode()} is not a list of integers")
    return labels.astype(np.int64)


def _load(file: Path) -> dict[bytes, Any]:
    try:
        with file.open("rb") as stream:
            content = _Reader(stream, encoding="bytes").load()
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror}); fetch the archive again", file=file) from None
    except Exception as error:
        raise InputError(f"is truncated or not CIFAR-100's ({error}); fetch the archive again", file=file) from None
    if not isinstance(content, dict):
        raise InputError("is not CIFAR-100's; fetch the archive again", file=file)
    return content
