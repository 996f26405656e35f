"""Every source that cannot be used is refused in one line that names the file or key and the remedy."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from study.config import DataConfig
from study.data import content_fingerprint, open_dataset
from study.errors import StorageError

Write = Callable[..., Path]
Refused = Callable[..., str]


def opening(source: Path | str, **values: Any) -> Callable[[], object]:
    return lambda: open_dataset(DataConfig(source=str(source), **values))


def test_missing_folder(tmp_path: Path, refused: Refused) -> None:
    refused(opening(tmp_path / "nowhere"), tmp_path / "nowhere", "give shapes, cifar100, or a folder")
    refused(lambda: content_fingerprint(str(tmp_path / "nowhere")), tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("x")
    refused(opening(tmp_path / "file"), tmp_path / "file", "no such folder")


def test_no_train_parquet(write_parquet: Write, refused: Refused) -> None:
    folder = write_parquet("test.parquet").parent
    refused(opening(folder), folder, "train*.parquet", "give the folder of the Parquet files")


@pytest.mark.parametrize("keep", [0, 3, 200, -9])
def test_truncated_parquet(write_parquet: Write, refused: Refused, keep: int) -> None:
    file = write_parquet()
    file.write_bytes(file.read_bytes()[:keep])
    refused(opening(file.parent), file, "truncated", "fetch it again")


def test_second_file_truncated(write_parquet: Write, refused: Refused) -> None:
    write_parquet("train-0.parquet")
    file = write_parquet("train-1.parquet")
    file.write_bytes(file.read_bytes()[:100])
    refused(opening(file.parent), file, "fetch it again")


@pytest.mark.parametrize("column", ["img", "fine_label", "coarse_label"])
def test_missing_column(write_parquet: Write, refused: Refused, column: str) -> None:
    file = write_parquet(**{column: None})
    refused(opening(file.parent), file, f"no column {column}", "img, fine_label, coarse_label are needed")


@pytest.mark.parametrize(("column", "label", "last"), [
    ("fine_label", 100, 99), ("fine_label", -1, 99), ("coarse_label", 20, 19), ("coarse_label", -3, 19),
])  # fmt: skip
def test_label_out_of_range(write_parquet: Write, refused: Refused, column: str, label: int, last: int) -> None:
    file = write_parquet(**{column: [0] * 11 + [label] + [0] * 28})
    refused(opening(file.parent), file, "row 11", f"{column} {label} is out of range", f"from 0 to {last}")


@pytest.mark.parametrize("labels", [[None] + [0] * 39, [0.5] * 40, ["cat"] * 40, [[1]] * 40], ids=str)
def test_labels_that_are_no_integers(write_parquet: Write, refused: Refused, labels: list[Any]) -> None:
    file = write_parquet(fine_label=labels)
    refused(opening(file.parent), file, "fine_label is not a column of integers", "fetch the file again")


@pytest.mark.parametrize("value", [None, {"bytes": None}, {"bytes": b""}, {"bytes": b"no image"}], ids=str)
def test_null_or_undecodable_image(
    write_parquet: Write, refused: Refused, one_png: bytes, value: dict[str, Any] | None
) -> None:
    file = write_parquet(img=[{"bytes": one_png}] * 5 + [value] + [{"bytes": one_png}] * 34)
    refused(opening(file.parent), file, "row 5", "cannot be decoded", "fetch the file again")


def test_truncated_image(write_parquet: Write, refused: Refused, one_png: bytes) -> None:
    file = write_parquet(img=[{"bytes": one_png}] * 39 + [{"bytes": one_png[:-200]}])
    refused(opening(file.parent), file, "row 39", "cannot be decoded")


def test_image_column_of_another_type(write_parquet: Write, refused: Refused) -> None:
    file = write_parquet(img=list(range(40)))
    refused(opening(file.parent), file, "row 0", "cannot be decoded")


def test_wrong_size(write_parquet: Write, refused: Refused) -> None:
    file = write_parquet(images=np.zeros((40, 3, 31, 28), np.uint8))
    refused(opening(file.parent), file, "row 0", "28×31 pixels", "32×32 is needed")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_image_that_is_not_rgb(write_parquet: Write, refused: Refused, one_png: bytes, mode: str) -> None:
    stream = io.BytesIO()
    Image.new(mode, (32, 32)).save(stream, "PNG")
    file = write_parquet(img=[{"bytes": one_png}] * 3 + [{"bytes": stream.getvalue()}] * 37)
    refused(opening(file.parent), file, "row 3", f"mode is {mode}", "RGB is needed")


def test_empty_table(write_parquet: Write, refused: Refused) -> None:
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    file = write_parquet(
        img=pa.array([], image), fine_label=pa.array([], pa.int64()), coarse_label=pa.array([], pa.int64())
    )
    refused(opening(file.parent), file, "has no rows", "fetch the file again")


def test_missing_test_split_matters_only_when_asked_for(write_parquet: Write, refused: Refused) -> None:
    folder = write_parquet().parent
    opened = open_dataset(DataConfig(source=str(folder)))
    assert len(opened.train.labels) + len(opened.validation.labels) == 40
    refused(opened.test, folder, "test*.parquet", "give the folder")


def test_missing_archive_test_split_matters_only_when_asked_for(write_archive: Write, refused: Refused) -> None:
    folder = write_archive()
    opened = open_dataset(DataConfig(source=str(folder)))
    refused(opened.test, folder / "test", "cannot be read", "again", kind=StorageError)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["train", "meta"])
def test_archive_that_would_run_code(tmp_path: Path, write_archive: Write, refused: Refused, name: str) -> None:
    folder = write_archive()
    target = tmp_path / "was-run"
    bomb = pickle.dumps({b"data": Bomb(target)}, protocol=2)
    (folder / name).write_bytes(bomb)
    refused(opening(folder), folder / name, "posix.mkdir", "fetch the archive again")
    assert not target.exists()
    pickle.loads(bomb)
    assert target.exists(), "the bomb itself is a dud, so that this test shows nothing"


@pytest.mark.parametrize("name", ["train", "meta"])
@pytest.mark.parametrize("keep", [0, 1, 60, -1])
def test_truncated_archive(write_archive: Write, refused: Refused, name: str, keep: int) -> None:
    file = write_archive() / name
    file.write_bytes(file.read_bytes()[:keep])
    refused(opening(file.parent), file, "fetch the archive again")


@pytest.mark.parametrize("change", [
    {"data": None}, {"fine_labels": None}, {"coarse_labels": None}, {"fine_labels": [0] * 39}, {"fine_labels": 3},
    {"data": [[300] * 3072] * 40}, {"data": np.full((40, 3072), 300)}, {"data": np.zeros((40, 3072), np.float32)},
    {"data": np.zeros((40, 3071), np.uint8)}, {"data": np.zeros((0, 3072), np.uint8)},
    {"fine_labels": [[0]] * 40}, {"fine_labels": [100] * 40}, {"coarse_labels": [-1] * 40}, {"fine_labels": [0.5] * 40},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_archive_of_other_content(write_archive: Write, refused: Refused, change: dict[str, Any]) -> None:
    folder = write_archive(**change)
    refused(opening(folder), folder / "train")


@pytest.mark.parametrize("meta", [[], {}, {b"fine_label_names": [b"\xff"], b"coarse_label_names": []}], ids=str)
def test_archive_with_other_names(write_archive: Write, refused: Refused, meta: object) -> None:
    folder = write_archive()
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    refused(opening(folder), folder / "meta", "fetch the archive again")


def test_shapes_have_no_coarse_labels(refused: Refused) -> None:
    refused(opening("shapes", labels="coarse"), "data.labels", "use labels: fine")


@pytest.mark.parametrize(
    ("key", "name", "there"), [("train_images", "train", 36), ("validation_images", "validation", 4)]
)
def test_more_images_than_there_are(write_parquet: Write, refused: Refused, key: str, name: str, there: int) -> None:
    folder = write_parquet().parent
    refused(opening(folder, **{key: there + 1}), f"data.{key}", f"{there + 1} are asked for", f"has {there}")
    assert len(getattr(open_dataset(DataConfig(source=str(folder), **{key: there})), name).labels) == there


def test_nothing_left_to_train_on(write_parquet: Write, refused: Refused, pixels: NDArray[np.uint8]) -> None:
    folder = write_parquet(images=pixels[:4]).parent
    refused(opening(folder), "data.validation_fraction", "no training images")
