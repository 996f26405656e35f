"""Which attempt at a trial may write to its run: the one with the greatest token, whatever the machines' clocks say."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from study import names
from study.storage.atomic import write_atomically
from study.storage.storage import Storage


class SupersededError(RuntimeError):
    """A later attempt at this trial has taken its run over: what this one still has to say is not written."""


def new_attempt(after: str = "") -> str:
    """A token later than ``after`` in text order: milliseconds, then chance."""
    milliseconds = max(int(time.time() * 1000), int(after.partition("-")[0] or 0) + 1)
    return f"{milliseconds:015d}-{secrets.token_hex(4)}"


def claim(folder: Path, earlier: Iterable[str], storage: Storage | None = None) -> str:
    """A token later than those of all earlier attempts, written to the trial's ``folder`` for the next one.

    The clock alone would not do: an attempt on a machine whose clock is behind would lose the run to the dead worker
    that it replaces. ``earlier`` are tokens that are known from elsewhere. ``storage`` is where attempts on machines
    that do not see this folder find the token.
    """
    note = folder / names.ATTEMPT_FILE
    if storage is not None:
        storage.refresh(note)
    known = list(earlier)
    with contextlib.suppress(FileNotFoundError):
        known.append(note.read_text().strip())
    attempt = new_attempt(max(known, default=""))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(note, f"{attempt}\n".encode())
    if storage is not None:
        storage.push(note)
    return attempt


def check_holder(run_id: str, holder: str | None, attempt: str) -> None:
    """Raises :class:`SupersededError` where ``holder``, the run's tag ``TAG_ATTEMPT``, is not ``attempt``."""
    if holder != attempt:
        raise SupersededError(f"run {run_id} belongs to attempt {holder}, not to {attempt}")
