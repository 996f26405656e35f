"""CIFAR-100 from its home, through torchvision, which verifies the archive's checksum."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
from pathlib import Path

from study.data import archive
from study.errors import InputError

_SECONDS = 15.0  # without an answer for so long, the network is taken for absent


def cifar100(cache_folder: Path, progress: bool) -> Path:
    """The folder of the unpacked archive, fetched into the cache the first time.

    Raises :class:`InputError` where it cannot be fetched or does not have the published checksum.
    """
    root = cache_folder / "cifar100"
    folder = root / "cifar-100-python"
    if archive.is_archive(folder) and (folder / "test").is_file():
        return folder
    from torchvision.datasets import CIFAR100

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        # torchvision shows its bar on stderr; without one it is kept quiet.
        with contextlib.redirect_stderr(sys.stderr if progress else io.StringIO()):
            CIFAR100(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"data cifar100: cannot be fetched ({(str(error) or type(error).__name__).splitlines()[0]}); "
            "give a folder of its Parquet or cifar-100-python files with --data"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return folder
