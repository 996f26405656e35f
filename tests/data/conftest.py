"""Small sources written by the tests, and the one way to look at a refusal."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from study.errors import InputError, StudyError

Write = Callable[..., Path]
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("STUDY_CACHE", str(folder))
    return folder


@pytest.fixture
def refused() -> Refused:
    """Call ``action``; it must raise an error of this kind, in one line that holds every one of ``parts``."""

    def check(action: Callable[[], object], *parts: object, kind: type[StudyError] = InputError) -> str:
        with pytest.raises(kind) as caught:
            action()
        message = str(caught.value)
        assert "\n" not in message
        assert "\r" not in message
        for part in parts:
            assert str(part) in message, f"{part!s} is not in: {message}"
        return message

    return check


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """(40, 3, 32, 32): noise, so that a swapped axis or channel shows."""
    return np.random.default_rng(7).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    """A (3, height, width) image as PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def one_png(pixels: NDArray[np.uint8]) -> bytes:
    return png(pixels[0])


@pytest.fixture
def write_parquet(tmp_path: Path, pixels: NDArray[np.uint8]) -> Write:
    """Write one Parquet file in the public schema; ``change`` replaces columns, None drops one. Gives the file."""

    def write(
        name: str = "train-00000-of-00001.parquet",
        folder: Path | None = None,
        images: NDArray[np.uint8] = pixels,
        names: dict[str, Sequence[str]] | None = None,
        **change: Any,
    ) -> Path:
        n = len(images)
        columns: dict[str, Any] = {
            "img": [{"bytes": png(image), "path": None} for image in images],
            "fine_label": [i % 4 for i in range(n)],
            "coarse_label": [i % 2 for i in range(n)],
        }
        columns = {key: value for key, value in (columns | change).items() if value is not None}
        table = pa.table(columns)
        if names:
            features = {key: {"names": list(value)} for key, value in names.items()}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        file = (folder or tmp_path / "set") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, file)
        return file

    return write


class _Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes as Python 2 wrote its ``str``: what the published files hold."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_bytes


def dump(content: object) -> bytes:
    """Pickle as the published files are: protocol 2, old strings, and numpy's arrays under their old module."""
    stream = io.BytesIO()
    _Python2(stream, protocol=2).dump(content)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.fixture
def write_archive(tmp_path: Path, pixels: NDArray[np.uint8]) -> Write:
    """Write a ``cifar-100-python`` folder as the published one. Gives the folder."""

    def write(split: str = "train", **change: Any) -> Path:
        folder = tmp_path / "cifar-100-python"
        folder.mkdir(exist_ok=True)
        n = len(pixels)
        content: dict[bytes, Any] = {
            b"data": pixels.reshape(n, -1),
            b"fine_labels": [i % 4 for i in range(n)],
            b"coarse_labels": [i % 2 for i in range(n)],
        }
        content |= {key.encode(): value for key, value in change.items()}
        meta = {
            b"fine_label_names": [f"fine {i}".encode() for i in range(100)],
            b"coarse_label_names": [f"coarse {i}".encode() for i in range(20)],
        }
        (folder / split).write_bytes(dump({k: v for k, v in content.items() if v is not None}))
        (folder / "meta").write_bytes(dump(meta))
        return folder

    return write
