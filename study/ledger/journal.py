"""What has not reached the ledger yet, on disk: one file per attempt at a trial, one line per entry, in order.

Entries outlive the process that wrote them. They need not outlive the machine: a trial's checkpoint holds all its
reports, and whoever continues from it sends the ledger those that it lacks.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from study import names

Entry = dict[str, Any]


class Journal:
    """A file of entries, locked by whoever has it open; the lock ends with the process."""

    def __init__(self, file: Path) -> None:
        """Opens or creates ``file``. Raises BlockingIOError where another process has it open."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._handle = file.open("ab+")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._handle.close()
            raise
        self._handle.seek(0)
        text = self._handle.read()
        # A kill during a write leaves a torn last line, which was never promised to anybody.
        self._handle.truncate(text.rfind(b"\n") + 1)

    def append(self, entry: Entry) -> None:
        """In the file when this returns, in one write."""
        self._handle.write(json.dumps(entry).encode() + b"\n")
        self._handle.flush()

    def entries(self) -> list[Entry]:
        """All of them, the oldest first."""
        self._handle.seek(0)
        return [json.loads(line) for line in self._handle]

    def clear(self) -> None:
        """Forget all entries."""
        self._handle.truncate(0)

    def remove(self) -> None:
        """Delete the file and release its lock."""
        self.file.unlink(missing_ok=True)
        self._handle.close()

    def close(self) -> None:
        """Release the lock and keep the file."""
        self._handle.close()


def journal_file(folder: Path, attempt: str) -> Path:
    """Where an attempt at the trial of ``folder`` keeps its journal."""
    return folder / f"{names.JOURNAL}{attempt}.jsonl"


def journal_files(folder: Path, pattern: str = "") -> list[Path]:
    """The journals in a trial's folder, or in those that match ``pattern``, the earliest attempt first."""
    return sorted(folder.glob(f"{pattern}{names.JOURNAL}*"), key=attempt_of)


def attempt_of(file: Path) -> str:
    """The attempt whose journal a file is."""
    return file.name.removeprefix(names.JOURNAL).removesuffix(".jsonl")
