"""The cache: keyed by content, whole or not there, shared by processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from study.config import DataConfig
from study.data import archive, cache, content_fingerprint, open_dataset, parquet
from study.data.arrays import Arrays
from study.errors import StorageError

Write = Callable[..., Path]
Refused = Callable[..., str]


def made() -> Arrays:
    images = np.arange(2 * 3 * 32 * 32, dtype=np.uint32).astype(np.uint8).reshape(2, 3, 32, 32)
    return Arrays(images, np.array([3, 1]), None, images[:, 0] > 128)


class Maker:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Arrays:
        self.calls += 1
        return made()


def same(a: Arrays, b: Arrays) -> bool:
    return all(
        (x is None and y is None) or (x.dtype == y.dtype and np.array_equal(x, y))
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / f"v{cache.FORMAT}").iterdir())


def test_made_once_and_memory_mapped(cache_folder: Path) -> None:
    maker = Maker()
    first, second = (cache.cached(cache_folder, "key", maker) for _ in range(2))
    assert maker.calls == 1
    assert isinstance(second.images, np.memmap)
    assert same(first, made())
    assert same(second, made())
    assert entries(cache_folder) == ["key"]


def test_open_to_whom_the_umask_lets_in(cache_folder: Path) -> None:
    cache_folder.mkdir()
    cache.cached(cache_folder, "key", made)
    assert (cache_folder / f"v{cache.FORMAT}" / "key").stat().st_mode == cache_folder.stat().st_mode


def test_leftover_part_is_ignored(cache_folder: Path) -> None:
    part = cache_folder / f"v{cache.FORMAT}" / ".key-abandoned"
    part.mkdir(parents=True)
    (part / "images.npy").write_bytes(b"half")
    maker = Maker()
    assert same(cache.cached(cache_folder, "key", maker), made())
    assert maker.calls == 1
    assert (part / "images.npy").read_bytes() == b"half", "it may be another process's, at work"


def truncate(entry: Path) -> None:
    file = entry / "images.npy"
    file.write_bytes(file.read_bytes()[:-1])


def garble(entry: Path) -> None:
    file = entry / "images.npy"
    file.write_bytes(bytes(file.stat().st_size))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated array": truncate,
    "zeroed array": garble,
    "missing array": lambda entry: (entry / "masks.npy").unlink(),
    "missing mark": lambda entry: (entry / "complete.json").unlink(),
    "empty mark": lambda entry: (entry / "complete.json").write_text(""),
    "mark of nothing": lambda entry: (entry / "complete.json").write_text("{}"),
    "mark of another kind": lambda entry: (entry / "complete.json").write_text("[]"),
    "empty folder": lambda entry: [file.unlink() for file in entry.iterdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_entry_is_made_again(cache_folder: Path, kind: str) -> None:
    maker = Maker()
    cache.cached(cache_folder, "key", maker)
    DAMAGE[kind](cache_folder / f"v{cache.FORMAT}" / "key")
    assert same(cache.cached(cache_folder, "key", maker), made())
    assert maker.calls == 2
    assert same(cache.cached(cache_folder, "key", maker), made())
    assert maker.calls == 2
    assert entries(cache_folder) == ["key"]


def test_another_process_mends_a_damaged_entry_first(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between this process's removal of the damaged entry and its rename, another one puts a whole entry there."""
    cache.cached(cache_folder, "key", made)
    truncate(cache_folder / f"v{cache.FORMAT}" / "key")
    rmtree = shutil.rmtree

    def removed_and_mended(path: Path, **values: Any) -> None:
        rmtree(path, **values)
        if path.name == "key":
            monkeypatch.setattr(shutil, "rmtree", rmtree)
            cache.cached(cache_folder, "key", made)

    monkeypatch.setattr(shutil, "rmtree", removed_and_mended)
    assert same(cache.cached(cache_folder, "key", made), made())
    assert entries(cache_folder) == ["key"]


@pytest.mark.parametrize("where", ["cache", "version", "entry"])
def test_a_file_in_the_way(cache_folder: Path, refused: Refused, where: str) -> None:
    version = cache_folder / f"v{cache.FORMAT}"
    file = {"cache": cache_folder, "version": version, "entry": version / "key"}[where]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("in the way")
    refused(
        lambda: cache.cached(cache_folder, "key", made),
        cache_folder,
        "cannot be written",
        "STUDY_CACHE",
        kind=StorageError,
    )
    assert file.read_text() == "in the way"


def test_dataset_with_a_file_for_a_cache(write_parquet: Write, cache_folder: Path, refused: Refused) -> None:
    source = str(write_parquet().parent)
    cache_folder.write_text("in the way")
    refused(lambda: open_dataset(DataConfig(source=source)), cache_folder, "STUDY_CACHE", kind=StorageError)


def open_at_once(barrier: Any, queue: Any, source: str, folder: str) -> None:
    os.environ["STUDY_CACHE"] = folder
    barrier.wait(60)
    try:
        opened = open_dataset(DataConfig(source=source))
        queue.put((opened.fingerprint, hashlib.sha256(opened.train.images.tobytes()).hexdigest()))
    except BaseException as error:
        queue.put((repr(error), ""))
        raise


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True], ids=["empty", "damaged"])
def test_two_processes_at_once(write_parquet: Write, cache_folder: Path, damaged: bool) -> None:
    source = str(write_parquet().parent)
    expected = content_fingerprint(source)
    if damaged:
        open_dataset(DataConfig(source=source))
        truncate(cache_folder / f"v{cache.FORMAT}" / expected)
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    arguments = (barrier, queue, source, str(cache_folder))
    processes = [context.Process(target=open_at_once, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=90) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    here = open_dataset(DataConfig(source=source))
    pixels = hashlib.sha256(here.train.images.tobytes()).hexdigest()
    assert results == [(expected, pixels)] * 2
    assert entries(cache_folder) == [expected]


def test_second_opening_decodes_nothing(write_parquet: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source=str(write_parquet().parent))
    first = open_dataset(config)
    monkeypatch.setattr(parquet, "read", None)
    second = open_dataset(config)
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(first.train.images, second.train.images)


@pytest.mark.parametrize("kind", ["parquet", "archive"])
def test_key_follows_content_not_path(
    kind: str, write_parquet: Write, write_archive: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_parquet().parent if kind == "parquet" else write_archive()
    first = open_dataset(DataConfig(source=str(folder)))
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy)
    assert content_fingerprint(str(copy)) == first.fingerprint
    monkeypatch.setattr(parquet, "read", None)
    monkeypatch.setattr(archive, "read", None)
    assert np.array_equal(open_dataset(DataConfig(source=str(copy))).train.images, first.train.images)

    file = next(path for path in sorted(copy.iterdir()) if path.name.startswith("train"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert content_fingerprint(str(copy)) != first.fingerprint
    assert content_fingerprint(str(folder)) == first.fingerprint


def test_train_and_test_are_keyed_apart(write_parquet: Write, cache_folder: Path, pixels: NDArray[np.uint8]) -> None:
    write_parquet("test.parquet", images=pixels[:8])
    opened = open_dataset(DataConfig(source=str(write_parquet("train.parquet").parent)))
    assert np.array_equal(opened.test().images, pixels[:8])
    assert len(entries(cache_folder)) == 2


def test_another_folder_than_the_default(write_parquet: Write, cache_folder: Path, tmp_path: Path) -> None:
    opened = open_dataset(DataConfig(source=str(write_parquet().parent)), cache=tmp_path / "other")
    assert entries(tmp_path / "other") == [opened.fingerprint]
    assert not cache_folder.exists()


def test_a_fingerprint_takes_no_torch(write_parquet: Write) -> None:
    code = "import sys; from study.data import content_fingerprint as f; print(f('shapes'), f(sys.argv[1])); "
    code += "assert 'torch' not in sys.modules"
    source = str(write_parquet().parent)
    done = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [content_fingerprint("shapes"), content_fingerprint(source)]


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STUDY_CACHE", str(tmp_path / "a"))
    assert cache.default_folder() == tmp_path / "a"
    monkeypatch.delenv("STUDY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache.default_folder().parent == tmp_path / "b"
