"""What a command ends with in one line instead of a traceback, and whose doing it is."""

from __future__ import annotations

import unicodedata
from pathlib import Path

#: Unicode categories of characters that a terminal obeys or does not show: controls, direction marks, halves of pairs.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_LONGEST_LINE = 1000


class StudyError(Exception):
    """An expected failure. As text it is one line: where, what is wrong, what to do.

    ``file``, ``line`` (from 1) and ``key`` (``space.lr``, ``--data``) say where, and stand before ``message``.
    """

    def __init__(self, message: str, *, key: str = "", file: str | Path | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.file = None if file is None else Path(file)
        self.line = line

    def __str__(self) -> str:
        place = str(self.file or "") + (f":{self.line}" if self.line is not None else "")
        return ": ".join(part for part in (place, self.key, self.message) if part)


class InputError(StudyError, ValueError):
    """The user's input cannot be used. A ``ValueError``, because pydantic collects no others from its validators."""


class ArtifactError(StudyError):
    """What an earlier run stored is missing, damaged, edited or of another version: a network, a table, a record."""


class ComparisonError(StudyError):
    """Two trials' scores cannot be compared."""


class UnavailableError(StudyError):
    """Something around this program fails it: a disk, a server, a cluster, another process that is dead or busy."""


class StorageError(UnavailableError):
    """A file or folder cannot be read or written. ``__cause__`` is the system's error where a retry depends on it."""


class LedgerError(UnavailableError):
    """MLflow's server or store does not answer, or refuses."""


class ClusterError(UnavailableError):
    """Ray, or a machine of its cluster, does not answer, or refuses."""


class InsufficientResourcesError(ClusterError):
    """A trial asks for more than the cluster has; ``resource`` is what is missing: ``CPU`` or ``GPU``."""

    def __init__(self, message: str, *, key: str = "", resource: str = "") -> None:
        super().__init__(message, key=key)
        self.resource = resource


def one_line(text: str) -> str:
    """One line, its middle left out where it is long, hidden characters as codes: no file's text moves the cursor."""
    words = " ".join(text.split())
    cut = words if len(words) <= _LONGEST_LINE else words[: _LONGEST_LINE // 2] + " … " + words[-_LONGEST_LINE // 2 :]
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN else c for c in cut)
