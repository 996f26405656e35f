"""The book of every look at a study's test split: a file that is only ever appended to. Knows no MLflow.

Each line holds the SHA-256 of the line before it, so that a line taken out or changed shows.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from study import names
from study.errors import ArtifactError, StorageError

PREVIOUS = "previous"  # SHA-256 of the line before; "" in the first


class Books(Protocol):
    """Where a study's books are; a :class:`study.storage.storage.Storage`."""

    @property
    def local(self) -> Path: ...

    def pull(self, file: Path) -> None: ...

    def push(self, file: Path) -> None: ...


def note_look(storage: Books, study: str, entry: Mapping[str, Any]) -> None:
    """:func:`note_opening` in the study's book, ``names.TEST_LOG_FILE``, wherever its results live."""
    book = storage.local / study / names.TEST_LOG_FILE
    storage.pull(book)
    note_opening(book, entry)
    storage.push(book)


def note_opening(file: Path, entry: Mapping[str, Any]) -> int:
    """Append ``entry`` (plain JSON types), on disk when this returns; how many there are now.

    Raises :class:`ArtifactError` where the book was edited, :class:`StorageError` where it cannot be written: then the
    split stays closed.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as book:
            fcntl.flock(book, fcntl.LOCK_EX)
            book.seek(0)
            lines = _checked(file, book.read())
            previous = hashlib.sha256(lines[-1]).hexdigest() if lines else ""
            book.write(json.dumps({**entry, PREVIOUS: previous}).encode() + b"\n")
            book.flush()
            os.fsync(book.fileno())
            return len(lines) + 1
    except OSError as error:
        raise StorageError(
            f"{file}: cannot be written ({error.strerror}), so the test split is not opened; its openings stand there"
        ) from None


def openings(file: Path) -> list[dict[str, Any]]:
    """All entries, the oldest first; none where there is no book. Raises :class:`ArtifactError` where it was edited."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{file}: cannot be read ({error.strerror})") from None
    return [json.loads(line) for line in _checked(file, content)]


def _checked(file: Path, content: bytes) -> list[bytes]:
    """The lines, each of which follows from the one before. One write makes a line: only a crash cuts it."""
    *lines, cut = content.split(b"\n")
    if cut:
        raise ArtifactError(f"{file}: its last line is cut off; look at it, and remove it")
    before = None
    for number, line in enumerate(lines, start=1):
        try:
            follows = json.loads(line)[PREVIOUS] == (hashlib.sha256(before).hexdigest() if before else "")
        except (ValueError, KeyError, TypeError):
            follows = False
        if not follows:
            raise ArtifactError(
                f"{file}: line {number} does not follow from the one before it; the book of openings of the test "
                "split was edited: bring the original back"
            )
        before = line
    return lines
