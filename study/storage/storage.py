"""Where a study's files live: a local or mounted folder, or an object store with a local working copy."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from study.command import expanded
from study.errors import InputError, StorageError
from study.storage.atomic import replacing

#: Where results live unless --storage says otherwise; a cluster's machines have STUDY_STORAGE from the cluster file.
DEFAULT_STORAGE = os.environ.get("STUDY_STORAGE") or "results"

_LONGEST_NAME = 200  # bytes; file systems take 255, and names of other files are longer by a suffix
NEEDED_BYTES = 64 * 2**20  # a study's databases and one small checkpoint; with less free, a disk counts as full


@dataclass(frozen=True)
class Storage:
    """``local`` holds the files; where there is a ``uri`` (e.g. ``s3://bucket/studies``) it is a working copy."""

    local: Path
    uri: str | None = None

    @classmethod
    def parse(cls, location: str) -> Storage:
        """``DIR``, ``file://…`` or a URI that pyarrow can open. Raises :class:`InputError` for another scheme."""
        if "://" not in location:
            return cls(expanded(location, "--storage").absolute())
        parts = urlsplit(location)
        if parts.scheme == "file":
            return cls(Path(unquote(parts.path)))
        storage = cls(Path("results").absolute(), location.rstrip("/"))
        storage._open("")
        return storage

    def _open(self, name: str) -> tuple[Any, str]:
        from pyarrow import ArrowException, fs  # imported here: the folder case needs no pyarrow

        try:
            return fs.FileSystem.from_uri(f"{self.uri}/{name}".rstrip("/"))
        except (ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"--storage {self.uri}: cannot be opened ({error}); give a folder or e.g. s3://bucket/studies"
            ) from None

    def check_writable(self) -> None:
        """Raises :class:`StorageError` where the folder cannot be created or written, or is nearly full."""
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.local) as probe:
                probe.write(b"x" * 65536)
                probe.flush()
                os.fsync(probe.fileno())
        except OSError as error:
            raise StorageError(
                f"results folder {self.local}: cannot be written ({error.strerror}); choose another with --storage"
            ) from None
        free = shutil.disk_usage(self.local).free
        if free < NEEDED_BYTES:
            raise StorageError(
                f"results folder {self.local}: only {free / 2**20:.0f} MiB are free and at least "
                f"{NEEDED_BYTES / 2**20:.0f} are needed; free some or choose another with --storage"
            )

    def push(self, file: Path) -> None:
        """Copy one file of the working copy to the store, if there is one; readers see the old file or the new one."""
        if self.uri is not None:
            from pyarrow import fs

            target, path = self._open(file.relative_to(self.local).as_posix())
            target.create_dir(path.rsplit("/", 1)[0], recursive=True)
            fs.copy_files(str(file), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=target)

    def pull(self, file: Path) -> None:
        """Copy one file from the store where the working copy lacks it and the store has it."""
        if not file.exists():
            self.refresh(file)

    def refresh(self, file: Path) -> None:
        """Copy one file from the store where the store has it, replacing that of the working copy."""
        if self.uri is not None:
            from pyarrow import fs

            source, path = self._open(file.relative_to(self.local).as_posix())
            if source.get_file_info(path).type == fs.FileType.File:
                file.parent.mkdir(parents=True, exist_ok=True)
                here = fs.LocalFileSystem()
                with replacing(file) as part:
                    fs.copy_files(path, str(part), source_filesystem=source, destination_filesystem=here)


def location_options(storage: str, tracking_uri: str | None) -> str:
    """The options, as typed, by which the next command finds the same studies: quoted, each behind a space."""
    options = f" --storage {shlex.quote(storage)}" if storage != DEFAULT_STORAGE else ""
    return options + (f" --tracking-uri {shlex.quote(tracking_uri)}" if tracking_uri else "")


def check_study_name(option: str, name: str) -> None:
    """Raises :class:`InputError` for a name that is not that of a folder within the results, such as ``../x``."""
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise InputError(f"{option} {name!r}: use letters, digits, '-', '_' and '.', not starting with '.'")
    if len(name.encode()) > _LONGEST_NAME:
        raise InputError(f"{option} {name[:20]}…: is longer than the {_LONGEST_NAME} bytes of a folder's name")


def trial_folder(storage: Storage, study: str, number: int) -> Path:
    """Where trial ``number`` keeps its checkpoint and, at the end, its network."""
    return storage.local / study / "trials" / f"{number:04d}"
