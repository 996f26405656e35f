"""A trial's log: a text file in its folder with one line per event, attempt after attempt.

When the trial is over, however it ended, the ledger stores it among the artifacts of the trial's run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import traceback
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from study import names


class TrialLog:
    """Appends to ``names.TRIAL_LOG`` in a trial's folder. Every line has its time, machine and process.

    A log that cannot be written does not stop a training: a full disk is reported when the checkpoint is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / names.TRIAL_LOG
        self._who = f"{platform.node()}/{os.getpid()}"

    def write(self, text: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        lines = "".join(f"{now} {self._who} {line}\n" for line in text.splitlines())
        with contextlib.suppress(OSError), self.file.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(lines)

    @contextlib.contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """Log warnings inside as lines, and an exception with its traceback before it is raised again."""
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object) -> None:
            self.write(f"{category.__name__} ({filename}:{lineno}): {message}")
            show(message, category, filename, lineno, *rest)  # type: ignore[arg-type]

        warnings.showwarning = note  # type: ignore[assignment]
        try:
            yield
        except BaseException:
            self.write(f"{what}: ended by an exception\n{traceback.format_exc()}")
            raise
        finally:
            warnings.showwarning = show
