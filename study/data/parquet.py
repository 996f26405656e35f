"""Reads Parquet files in the schema of the public CIFAR-100 set: ``img``, ``fine_label``, ``coarse_label``."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pyarrow import parquet

from study.data.arrays import SIDE, Arrays, check_labels
from study.errors import InputError

N_FINE, N_COARSE = 100, 20


def files_of(folder: Path, split: str) -> list[Path]:
    """The files of one split, by name. Raises :class:`InputError` where there are none."""
    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        raise InputError(f"has no {split}*.parquet; give the folder of the Parquet files", file=folder)
    return files


def read(files: Sequence[Path], tick: Callable[[int], None]) -> Arrays:
    """Decode all rows; ``tick(n)`` is called after every n images.

    Raises :class:`InputError` naming the file: damaged, without images or labels, a label out of range, an image
    that cannot be decoded, is not RGB or is not 32×32.
    """
    images: list[NDArray[np.uint8]] = []
    fine: list[NDArray[np.int64]] = []
    coarse: list[NDArray[np.int64]] = []
    for file in files:
        table = _table(file)
        columns = [c for c in ("img", "fine_label", "coarse_label") if c not in table.column_names]
        if columns:
            raise InputError(
                f"has no column {columns[0]}; it has {', '.join(table.column_names) or 'none'}, "
                "and img, fine_label, coarse_label are needed",
                file=file,
            )
        for column, n, into in (("fine_label", N_FINE, fine), ("coarse_label", N_COARSE, coarse)):
            values = table[column]
            if not pa.types.is_integer(values.type) or values.null_count:  # to_numpy would round or garble them
                nulls = f" with {values.null_count} nulls" if values.null_count else ""
                raise InputError(
                    f"{column} is not a column of integers (it is {values.type}{nulls}); fetch the file again",
                    file=file,
                )
            labels = values.to_numpy().astype(np.int64)
            check_labels(labels, n, file, column)
            into.append(labels)
        images.append(_decode(file, table["img"], tick))
    out = np.concatenate(images)
    if not len(out):
        raise InputError("has no rows; fetch the file again", file=files[0])
    return Arrays(out, np.concatenate(fine), np.concatenate(coarse))


def class_names(file: Path) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Fine and coarse names from the ``huggingface`` key of the schema's metadata, where it has them."""
    try:
        features = json.loads(parquet.read_schema(file).metadata[b"huggingface"])["info"]["features"]
        return tuple(features["fine_label"]["names"]), tuple(features["coarse_label"]["names"])
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException):
        return None, None


def _table(file: Path) -> pa.Table:
    try:
        return parquet.read_table(file)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"is truncated or not Parquet ({reason}); fetch it again", file=file) from None


def _decode(file: Path, column: Any, tick: Callable[[int], None]) -> NDArray[np.uint8]:
    images = np.empty((len(column), 3, SIDE, SIDE), np.uint8)
    for row, value in enumerate(column.to_pylist()):
        data: Any = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise InputError(f"row {row}: the image cannot be decoded (it is empty); fetch the file again", file=file)
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except Exception as error:
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
            raise InputError(
                f"row {row}: the image cannot be decoded ({reason}); fetch the file again",
                file=file,
            ) from None
        if image.size != (SIDE, SIDE):
            raise InputError(
                f"row {row}: the image is {image.size[0]}×{image.size[1]} pixels; {SIDE}×{SIDE} is needed",
                file=file,
            )
        if image.mode != "RGB":  # converting would hide that these are not the images of the published set
            raise InputError(f"row {row}: the image's mode is {image.mode}; RGB is needed, convert it first", file=file)
        images[row] = np.asarray(image).transpose(2, 0, 1)
        if row % 1000 == 999:
            tick(1000)
    tick(len(column) % 1000)
    return images
