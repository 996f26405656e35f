"""The folder of an export appears as a whole: whatever is killed meanwhile, there is the old one, or none."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.export.manifest import MANIFEST_FILE, foreign_files, read_manifest
from study.errors import ArtifactError, InputError, StorageError, UnavailableError
from study.storage.atomic import sync, sync_folder

_HINT = "choose another --out"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # renameat2(2)
_EXPECTED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST,
             errno.ENAMETOOLONG, errno.EIO, errno.ENOENT, errno.EFBIG, errno.EBUSY, errno.EXDEV)  # fmt: skip


def check_replaceable(out: Path, study: str) -> None:
    """Only an earlier export of the same study, and nothing beside it, is ever replaced. Raises :class:`InputError`."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
    except OSError as error:
        raise StorageError(f"--out {out}: cannot be read ({error.strerror}); {_HINT}") from None
    if not out.is_dir():
        raise InputError(f"--out {out}: is a file; {_HINT}")
    manifest: dict[str, Any] | None
    try:
        manifest = read_manifest(out)
    except ArtifactError:
        manifest = _first_format(out)
    if manifest is None:
        raise InputError(f"--out {out}: holds other files, which an export would replace; {_HINT}")
    if manifest["study"] != study:
        raise InputError(f"--out {out}: holds the export of study {manifest['study']!r}; {_HINT}")
    foreign = foreign_files(out, manifest)
    if foreign:
        raise InputError(f"--out {out}: {foreign[0]} is not part of the export that it holds; move it or {_HINT}")


def _first_format(out: Path) -> dict[str, Any] | None:
    """A manifest as exports had it before they listed all files."""
    try:
        manifest = json.loads((out / MANIFEST_FILE).read_text())
        names = [f"{n['folder']}/{file}" for n in manifest["networks"] for file in n["sha256"]]
        return {"study": manifest["study"], "files": dict.fromkeys(names)}
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def staged(out: Path, needed: int = 0) -> Iterator[Path]:
    """A hidden folder beside ``out`` to write into; gone at the end, unless :func:`replace_folder` moved it.

    What a killed export left there is removed. Fewer than ``needed`` free bytes are refused first. Raises
    :class:`UnavailableError` where another export to ``out`` is under way, :class:`StorageError` where the place cannot
    be written, here or while the caller writes (disk full, no permission).
    """
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _finish_interrupted(out)
        with _held(part, out):
            for left in part.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            try:
                _check_space(out, needed)
                yield part
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        if error.errno not in _EXPECTED:
            raise
        hint = f"free space there or {_HINT}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else _HINT
        raise StorageError(f"--out {out}: cannot be written ({error.strerror}); {hint}") from None


def replace_folder(part: Path, out: Path) -> None:
    """Put ``part`` in the place of ``out``: one system call where the file system can exchange two folders.

    Elsewhere two renames; a kill between them leaves none, and the next export brings the old one back.
    """
    sync(part)
    if not out.exists():
        os.rename(part, out)
    elif not _exchange(part, out):
        old = _old(out)
        shutil.rmtree(old, ignore_errors=True)
        os.rename(out, old)
        os.rename(part, out)
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(out.parent)


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise StorageError(
            f"--out {out}: only {free / 2**20:.0f} MiB are free there and about {needed / 2**20:.0f} are needed; free "
            f"some or {_HINT}"
        )


def _finish_interrupted(out: Path) -> None:
    """After a kill between two renames: the old folder comes back; after one behind them: it goes."""
    if _old(out).is_dir():
        if out.exists():
            shutil.rmtree(_old(out), ignore_errors=True)
        else:
            os.rename(_old(out), out)


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


@contextlib.contextmanager
def _held(part: Path, out: Path) -> Iterator[None]:
    """``part`` exists, and this process alone writes into it: the lock on it ends with the process."""
    part.mkdir(exist_ok=True)
    handle = os.open(part, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), os.stat(part)):
                raise BlockingIOError  # it was moved into place by another export just now
        except (BlockingIOError, FileNotFoundError):
            raise UnavailableError(f"--out {out}: another export to it is under way; wait for it or {_HINT}") from None
        yield
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically; False where the system or the file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
