"""Downloads CIFAR-100 with torchvision, which verifies the archive's checksum."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import sys
import tarfile
from pathlib import Path

from study.data import archive
from study.errors import StorageError, UnavailableError
from study.storage.atomic import hidden_beside, move_into_place

_SECONDS = 15.0  # without an answer for so long, the download fails


def cifar100(cache_folder: Path, progress: bool) -> Path:
    """The folder of the unpacked archive, downloaded into the cache the first time.

    Raises :class:`UnavailableError` where it cannot be downloaded or does not have the published checksum,
    :class:`StorageError` where it cannot be stored.
    """
    folder = cache_folder / "cifar100" / "cifar-100-python"
    if _whole(folder):
        return folder
    with hidden_beside(folder) as part:
        try:
            part.mkdir(parents=True)
        except OSError as error:
            raise StorageError(
                f"cache {cache_folder}: cannot be written ({error.strerror}); set STUDY_CACHE to a folder with room"
            ) from None
        _fetch(part, progress)
        with contextlib.suppress(OSError):  # there already: another process was first
            move_into_place(part / folder.name, folder)
    if not _whole(folder):
        raise StorageError("is not whole; remove this folder and start again", file=folder)
    return folder


def _whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in archive.FILES)


def _fetch(part: Path, progress: bool) -> None:
    from torchvision.datasets import CIFAR100

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        # torchvision shows its bar on stderr; without one it is kept quiet.
        with contextlib.redirect_stderr(sys.stderr if progress else io.StringIO()):
            CIFAR100(str(part), download=True)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnavailableError(
            f"data cifar100: cannot be fetched ({reason}); "
            "give a folder of its Parquet or cifar-100-python files with --data"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
