"""Files and folders that are either the old one or the new one, whatever happens while they are written.

The one way for all of this project: write under a hidden name in the same folder, since a rename is atomic only within
one file system; flush the content to disk; rename; flush the folder, which holds the name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from study.errors import StorageError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, on disk when this returns.

    Raises :class:`StorageError` naming the path where it cannot be written (disk full, no permission); the old file is
    untouched then.
    """
    try:
        with replacing(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror or error}", file=path) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path to write a file to that replaces ``path`` at the end of the block, for libraries that write to a path.

    A folder works as well, where none is at ``path``. Where the block raises, nothing changes. Raises OSError.
    """
    with hidden_beside(path) as part:
        yield part
        move_into_place(part, path)


@contextlib.contextmanager
def hidden_beside(path: Path) -> Iterator[Path]:
    """An unused hidden path in the folder of ``path``; what is there at the end of the block is removed.

    Only a kill of the process leaves such a file or folder, named ``*.tmp``. Whoever is known to write alone takes a
    fixed name and :func:`move_into_place` instead, so that the next attempt overwrites what a kill left.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def move_into_place(part: Path, path: Path) -> None:
    """Flush the file or folder ``part`` to disk and rename it to ``path``. Raises OSError, also for a full folder."""
    sync(part)
    os.replace(part, path)
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder with all that is in it, to disk. Raises OSError."""
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
        sync_folder(path)
    else:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the file system allows that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
