"""Sends what writers left in journals: those that were killed, and those that ended while the ledger was away."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from study.ledger.attempts import SupersededError
from study.ledger.journal import Entry, Journal, journal_files
from study.ledger.ledger import Ledger
from study.ledger.records import DataInput
from study.ledger.run import TrialRun
from study.ledger.tracking import first_line

_log = logging.getLogger(__name__)


def deliver(ledger: Ledger, entries: Sequence[Entry], run: TrialRun | None = None) -> TrialRun:
    """Write entries, the first of which opens the trial, to the ledger; what it holds already changes nothing.

    ``run``: the trial's, where it is open already. Raises :class:`SupersededError` where a later attempt has the run.
    """
    if run is None:
        inputs = [DataInput(**values) for values in entries[0]["inputs"]]
        run = ledger.open_trial(**entries[0]["open"], inputs=inputs)
    run.sync([e["report"] for e in entries if "report" in e])
    run.sample([e["sample"] for e in entries if "sample" in e])
    for entry in entries:
        if "finish" in entry:
            logs = [file for file in map(Path, entry.get("logs", ())) if file.exists()]
            run.finish(**entry["finish"], files=[Path(file) for file in entry["files"]], logs=logs)
    return run


def replay(ledger: Ledger, trials: Path) -> int:
    """Send the journals in the folders under ``trials``; how many still wait.

    Those that a living process has open are left to it.
    """
    left = 0
    for file in journal_files(trials, "*/"):
        try:
            journal = Journal(file)
        except BlockingIOError:
            left += 1
            continue
        entries = journal.entries()
        try:
            if entries:
                deliver(ledger, entries)
            journal.remove()
        except SupersededError:
            journal.remove()
        except Exception as error:  # whatever MLflow raises where its store is away
            _log.warning("%s cannot be sent to the ledger: %s", file, first_line(error))
            left += 1
    return left


def close_session(ledger: Ledger, trials: Path, *, complete: bool, patience: float = 60.0) -> int:
    """Send all journals and end the study's own run; how many journals still wait after ``patience`` seconds."""
    end = time.monotonic() + patience
    while True:
        left = replay(ledger, trials)
        try:
            if left == 0:
                ledger.close_study(complete=complete)
                return 0
        except Exception as error:  # whatever MLflow raises where its store is away
            _log.warning("the study's own run cannot be closed: %s", first_line(error))
        if time.monotonic() > end:
            return left
        time.sleep(1)
