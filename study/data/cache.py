"""Decoded splits on disk: keyed by content, written atomically, shared by every process, memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from study.data.arrays import Arrays
from study.errors import StorageError
from study.storage.atomic import hidden_beside, move_into_place, write_atomically

FORMAT = 1  # raise it when the files below change
_NAME = "interpretable-gradients-study"
_MARK = "complete.json"  # the size of every file of an entry


def default_folder() -> Path:
    """``$STUDY_CACHE``, else a folder of this project under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if os.environ.get("STUDY_CACHE"):
        return Path(os.environ["STUDY_CACHE"]).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / _NAME


def cached(folder: Path, key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays stored under ``key``, memory-mapped; ``make`` is called where they are missing or damaged.

    Where two processes make the same entry at once, the first to rename wins and both succeed. Raises
    :class:`StorageError` where the cache cannot be written.
    """
    entry = folder / f"v{FORMAT}" / key
    found = _open(entry)
    if found is not None:
        return found
    arrays = make()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with hidden_beside(entry) as part:
            _write(part, arrays)
            _replace(part, entry)
    except OSError as error:
        raise StorageError(
            f"cache {folder}: cannot be written ({error.strerror or error}); set STUDY_CACHE to a folder with room"
        ) from None
    stored = _open(entry)
    return arrays if stored is None else stored


def _write(part: Path, arrays: Arrays) -> None:
    part.mkdir()
    sizes = {}
    for name, value in vars(arrays).items():
        if value is not None:
            np.save(part / f"{name}.npy", value)
            sizes[name] = (part / f"{name}.npy").stat().st_size
    (part / _MARK).write_text(json.dumps(sizes))


def _replace(part: Path, entry: Path) -> None:
    for last in (False, False, True):
        try:
            move_into_place(part, entry)
            return
        except OSError:  # there already: whole, from another process, or damaged
            if _open(entry) is not None:
                return
            if last:
                raise
            shutil.rmtree(entry, ignore_errors=True)


def _open(entry: Path) -> Arrays | None:
    """None unless every file is there in full length."""
    try:
        sizes = json.loads((entry / _MARK).read_text())
        for name, size in sizes.items():
            if (entry / f"{name}.npy").stat().st_size != size:
                return None
        loaded = {name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in sizes}
        return Arrays(**{"coarse": None, **loaded})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def hash_files(folder: Path, files: Sequence[Path]) -> str:
    """SHA-256 (hex) over names and bytes; remembered by path, size and time, so a second call reads no file."""
    stats = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    memo = folder / "hashes" / hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    try:
        known = memo.read_text()
        if len(known) == 64:
            return known
    except OSError:
        pass
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    # Only a memo: a cache that cannot be written is reported by `cached`.
    with contextlib.suppress(OSError, StorageError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, digest.hexdigest().encode())
    return digest.hexdigest()
