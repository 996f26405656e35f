"""What is on its way to the ledger, on disk: one file per attempt at a trial, one line per entry, in order.

Entries outlive the process that wrote them. They need not outlive the machine: a trial's checkpoint holds all its
reports, and whoever continues from it sends the ledger those that it lacks.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

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
        # A kill amid a write leaves a torn last line, which was never promised to anybody.
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
        """Delete the file and let go of it."""
        self.file.unlink(missing_ok=True)
        self._handle.close()

    def close(self) -> None:
        self._handle.close()
