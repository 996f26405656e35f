"""A trial's entries in the ledger, written by a thread of their own: training never waits for the ledger.

Every entry is in a journal first. While the ledger is away the study goes on and the journal grows; when it is back,
entries follow in order, by the same thread or, after a kill, by the next command (:func:`replay`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from study import names
from study.ledger.attempts import Exchange, claim
from study.ledger.journal import Entry, Journal
from study.ledger.ledger import DataInput, Ledger
from study.ledger.metric_writes import SupersededError
from study.ledger.run import REPORT_MS, TrialRun
from study.ledger.tracking import first_line

_GATHER = 1.0  # seconds in which reports are gathered into one request
_LONGEST_PAUSE = 30.0  # seconds between tries while the ledger is away
_CAPACITY = 256  # entries under way; more than these wait while the ledger answers
_log = logging.getLogger(__name__)


class TrialBook:
    """Tells the ledger of one attempt at one trial.

    The attempt takes the trial's run over when its first entry arrives. ``superseded`` is True once a later attempt
    has done the same: from then on nothing is written, and what waits is forgotten.
    """

    def __init__(
        self,
        ledger: Ledger,
        folder: Path,
        *,
        trial: int,
        seed: int,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        inputs: Sequence[DataInput] = (),
        exchange: Exchange | None = None,
    ) -> None:
        """``folder``: the trial's own. What earlier attempts left there and could not tell is told by this one.

        ``exchange``: the storage, where attempts on other machines do not see this folder.
        """
        earlier = sorted(folder.glob(f"{names.JOURNAL}*"), key=_attempt_of)
        attempt = claim(folder, map(_attempt_of, earlier), exchange)
        self._opening: Entry = {
            "open": {"trial": trial, "seed": seed, "params": dict(params), "tags": dict(tags), "attempt": attempt},
            "inputs": [asdict(i) for i in inputs],
        }
        self._logs = folder / names.TRIAL_LOG
        self._opening["open"]["tags"].setdefault(names.TAG_LOG, str(self._logs.absolute()))
        self.superseded = False
        self._ledger = ledger
        self._journal = Journal(folder / f"{names.JOURNAL}{attempt}.jsonl")
        self._waiting: list[Entry] = [self._opening]
        for file in earlier:
            self._waiting += _taken_over(file)
        for entry in self._waiting:
            self._journal.append(entry)
        for file in earlier:
            _remove(file)
        self._changed = threading.Condition()
        self._urgent = self._ended = self._away = False
        self._epoch = 0
        threading.Thread(target=self._work, name="ledger", daemon=True).start()

    def report(self, history: Sequence[Mapping[str, float]]) -> None:
        """Add the reports of epochs after the last one added. Waits only where the ledger answers and lags behind."""
        for report in history:
            if report["epoch"] > self._epoch:
                self._epoch = int(report["epoch"])
                self._add({"report": {**report, REPORT_MS: int(time.time() * 1000)}})
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < _CAPACITY or self._away or self.superseded)

    def sample(self, values: Mapping[str, float]) -> None:
        """Add what the machine does now (MLflow's names of system metrics). Never waits."""
        self._add({"sample": {**values, REPORT_MS: int(time.time() * 1000)}})

    def finish(
        self,
        state: str,
        *,
        reason: str = "",
        scores: Mapping[str, float] | None = None,
        files: Sequence[Path] = (),
        tags: Mapping[str, str] | None = None,
        patience: float = 30.0,
    ) -> bool:
        """End the trial as :meth:`TrialRun.finish` does; whether the ledger has all of it within ``patience`` seconds.

        Where it has not, the entries stay in the journal, and are tried as long as this process lives.
        """
        paths = [str(file.absolute()) for file in files]
        self._add(
            {
                "finish": {"state": state, "reason": reason, "scores": dict(scores or {}), "tags": dict(tags or {})},
                "files": paths,
                "logs": [str(self._logs.absolute())],
            },
            last=True,
        )
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self.superseded, timeout=patience)
            return not self._waiting

    def _add(self, entry: Entry, *, last: bool = False) -> None:
        with self._changed:
            if self.superseded or self._ended:
                return
            if not self._waiting:  # the file was cleared when all was told
                self._journal.append(self._opening)
            self._journal.append(entry)
            self._waiting.append(entry)
            self._urgent = self._ended = last
            self._changed.notify_all()

    def _work(self) -> None:
        run: TrialRun | None = None
        pause = _GATHER
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                self._changed.wait_for(lambda: self._urgent, timeout=pause)
                entries, self._urgent = list(self._waiting), False
            try:
                run = deliver(self._ledger, [self._opening, *entries], run)
            except SupersededError as error:
                _log.warning("%s", error)
                with self._changed:
                    self.superseded = True
                    self._waiting.clear()
                    self._journal.remove()
                    self._changed.notify_all()
                return
            except Exception as error:  # whatever a store that is away raises through MLflow
                _log.warning("the ledger is away (%s); its entries wait in %s", first_line(error), self._journal.file)
                run = None  # what of this arrived is seen when it is opened again
                pause = min(2 * pause, _LONGEST_PAUSE)
                with self._changed:
                    self._away = True
                    self._changed.notify_all()
                continue
            pause = _GATHER
            with self._changed:
                self._away = False
                del self._waiting[: len(entries)]
                # Where the storage is away the file stays: told once more, its entries change nothing.
                with contextlib.suppress(OSError):
                    if not self._waiting:
                        self._journal.clear()
                    if self._ended and not self._waiting:
                        self._journal.remove()
                if self._ended and not self._waiting:
                    self._changed.notify_all()
                    return
                self._changed.notify_all()


def deliver(ledger: Ledger, entries: Sequence[Entry], run: TrialRun | None = None) -> TrialRun:
    """Write entries, the first of which opens the trial, to the ledger; what it holds already changes nothing.

    ``run``: where it is open already. Raises :class:`SupersededError` where a later attempt has the run.
    """
    if run is None:
        inputs = [DataInput(**i) for i in entries[0]["inputs"]]
        run = ledger.open_trial(**entries[0]["open"], inputs=inputs)
    run.sync([e["report"] for e in entries if "report" in e])
    run.sample([e["sample"] for e in entries if "sample" in e])
    for entry in entries:
        if "finish" in entry:
            logs = [file for file in map(Path, entry.get("logs", ())) if file.exists()]
            run.finish(**entry["finish"], files=[Path(file) for file in entry["files"]], logs=logs)
    return run


def replay(ledger: Ledger, trials: Path) -> int:
    """Deliver what attempts that are over left in the folders under ``trials``; how many journals still wait.

    A journal that a living process has open is that process's own business.
    """
    left = 0
    for file in sorted(trials.glob(f"*/{names.JOURNAL}*"), key=_attempt_of):
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
        except Exception as error:
            _log.warning("%s cannot be told to the ledger: %s", file, first_line(error))
            left += 1
    return left


def settle(ledger: Ledger, trials: Path, *, complete: bool, patience: float = 60.0) -> int:
    """End a session's books: replay what waits and close the study; journals that still wait after ``patience`` s."""
    end = time.monotonic() + patience
    while True:
        left = replay(ledger, trials)
        try:
            if left == 0:
                ledger.close_study(complete=complete)
                return 0
        except Exception as error:
            _log.warning("the study's own run cannot be closed: %s", first_line(error))
        if time.monotonic() > end:
            return left
        time.sleep(1)


def _attempt_of(file: Path) -> str:
    return file.name.removeprefix(names.JOURNAL).removesuffix(".jsonl")


def _taken_over(file: Path) -> list[Entry]:
    """Reports and samples that an attempt which is over did not tell."""
    try:
        journal = Journal(file)
    except BlockingIOError:
        return []  # it is still alive, and finds out for itself that it is superseded
    untold = [entry for entry in journal.entries() if "report" in entry or "sample" in entry]
    journal.close()
    return untold


def _remove(file: Path) -> None:
    try:
        Journal(file).remove()
    except BlockingIOError:
        return
