"""Files that are either the old one or the new one, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from study.errors import StorageError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, on disk when this returns.

    A reader sees the old file or the new one. Raises :class:`StorageError` naming the path where it cannot be written
    (disk full, no permission); the old file is untouched then and nothing is left beside it. Only a kill of the
    process while it writes leaves a hidden ``*.tmp`` file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        # In the same folder, for a rename across file systems is none. 0o666: as the umask has it.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot be written: {error.strerror or error}", file=path) from error


def sync_folder(folder: Path) -> None:
    """Make a rename in it durable, where the file system lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
