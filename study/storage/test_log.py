"""The log of openings of a study's test split: a file that is only appended to. Knows no MLflow.

Each line holds the SHA-256 of the line before it, so a line that was removed or changed is noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study import names
from study.errors import ArtifactError, StorageError
from study.storage.storage import Storage

PREVIOUS = "previous"  # SHA-256 of the line before; "" in the first


def log_opening(storage: Storage, study: str, entry: Mapping[str, Any]) -> None:
    """Append an entry (plain JSON types) to the study's log, ``names.TEST_LOG_FILE``, wherever its results live.

    Raises :class:`ArtifactError` where the log was edited, :class:`StorageError` where it cannot be written; the split
    must not be opened then.
    """
    file = storage.local / study / names.TEST_LOG_FILE
    storage.pull(file)
    append(file, entry)
    storage.push(file)


def append(file: Path, entry: Mapping[str, Any]) -> None:
    """Append ``entry`` to a log, on disk when this returns. Raises as :func:`log_opening` does."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            log.seek(0)
            lines = _checked(file, log.read())
            previous = hashlib.sha256(lines[-1]).hexdigest() if lines else ""
            log.write(json.dumps({**entry, PREVIOUS: previous}).encode() + b"\n")
            log.flush()
            os.fsync(log.fileno())
    except OSError as error:
        raise StorageError(
            f"{file}: cannot be written ({error.strerror}), so the test split is not opened: an opening is logged first"
        ) from None


def openings(file: Path) -> list[dict[str, Any]]:
    """All entries, the oldest first; none where there is no log. Raises :class:`ArtifactError` where it was edited."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{file}: cannot be read ({error.strerror})") from None
    return [json.loads(line) for line in _checked(file, content)]


def _checked(file: Path, content: bytes) -> list[bytes]:
    """The lines, each of which holds the hash of the one before it. One write makes a line: only a crash cuts it."""
    *lines, cut = content.split(b"\n")
    if cut:
        raise ArtifactError(f"{file}: its last line is cut off; look at it, then remove it")
    before = None
    for number, line in enumerate(lines, start=1):
        try:
            follows = json.loads(line)[PREVIOUS] == (hashlib.sha256(before).hexdigest() if before else "")
        except (ValueError, KeyError, TypeError):
            follows = False
        if not follows:
            raise ArtifactError(
                f"{file}: line {number} does not follow from the one before it; this log of openings of the test "
                "split was edited, restore the original"
            )
        before = line
    return lines
