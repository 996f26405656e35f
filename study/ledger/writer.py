"""Writes a trial's entries to the ledger from a thread of its own, so that training never waits for the ledger.

Every entry is in a journal first. While the ledger is away the study goes on and the journal grows; when it is back,
entries follow in order, by the same thread or, after a kill, by the next command (:mod:`study.ledger.replay`).
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
from study.ledger.attempts import SupersededError, claim
from study.ledger.journal import Entry, Journal, attempt_of, journal_file, journal_files
from study.ledger.ledger import Ledger
from study.ledger.records import DataInput
from study.ledger.replay import deliver
from study.ledger.run import REPORT_MS, TrialRun
from study.ledger.tracking import first_line
from study.storage.storage import Storage

_GATHER = 1.0  # seconds in which reports are gathered into one request
_LONGEST_PAUSE = 30.0  # seconds between tries while the ledger is away
_CAPACITY = 256  # entries under way; where more wait and the ledger answers, reports wait as well
_log = logging.getLogger(__name__)


class TrialWriter:
    """Writes one attempt at one trial to the ledger, from :meth:`start` until :meth:`finish` is delivered.

    The attempt takes the trial's run over when its first entry arrives. ``superseded`` is True once a later attempt
    has done the same: from then on nothing is written, and what waits is dropped.
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
        storage: Storage | None = None,
    ) -> None:
        """Claims the trial's ``folder`` for this attempt and takes over what earlier ones left in journals there.

        ``storage``: where attempts on machines that do not see this folder find this one's token.
        """
        earlier = journal_files(folder)
        attempt = claim(folder, map(attempt_of, earlier), storage)
        self._log_file = str((folder / names.TRIAL_LOG).absolute())
        self._opening: Entry = {
            "open": {
                "trial": trial,
                "seed": seed,
                "params": dict(params),
                "tags": {names.TAG_LOG: self._log_file, **tags},
                "attempt": attempt,
            },
            "inputs": [asdict(i) for i in inputs],
        }
        self.superseded = False
        self._ledger = ledger
        self._journal = Journal(journal_file(folder, attempt))
        self._entries = [self._opening, *_left_by(earlier)]
        for entry in self._entries:
            self._journal.append(entry)
        for file in earlier:
            with contextlib.suppress(BlockingIOError):
                Journal(file).remove()
        self._changed = threading.Condition()
        self._urgent = self._ended = self._away = False
        self._epoch = 0
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)

    def start(self) -> None:
        """Begin to write; what is added before waits in the journal."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many entries the ledger does not have yet."""
        return len(self._entries)

    def report(self, history: Sequence[Mapping[str, float]]) -> None:
        """Add the reports of epochs after the last one added. Waits only where the ledger answers and lags behind."""
        for report in history:
            if report["epoch"] > self._epoch:
                self._epoch = int(report["epoch"])
                self._add({"report": {**report, REPORT_MS: int(time.time() * 1000)}})
        with self._changed:
            self._changed.wait_for(
                lambda: self.waiting < _CAPACITY or self._away or self.superseded or not self._thread.is_alive()
            )

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

        What it does not have then stays in the journal, and is tried again for as long as this process lives.
        """
        end = {"state": state, "reason": reason, "scores": dict(scores or {}), "tags": dict(tags or {})}
        paths = [str(file.absolute()) for file in files]
        self._add({"finish": end, "files": paths, "logs": [self._log_file]}, last=True)
        with self._changed:
            self._changed.wait_for(lambda: not self._entries or self.superseded, timeout=patience)
            return not self._entries

    def _add(self, entry: Entry, *, last: bool = False) -> None:
        with self._changed:
            if self.superseded or self._ended:
                return
            if not self._entries:  # the journal was cleared when all was delivered
                self._journal.append(self._opening)
            self._journal.append(entry)
            self._entries.append(entry)
            self._urgent = self._ended = last
            self._changed.notify_all()

    def _work(self) -> None:
        run: TrialRun | None = None
        pause = _GATHER
        over = False
        while not over:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._entries))
                self._changed.wait_for(lambda: self._urgent, timeout=pause)
                entries, self._urgent = list(self._entries), False
            try:
                run = deliver(self._ledger, [self._opening, *entries], run)
            except SupersededError as error:
                _log.warning("%s", error)
                self._give_up()
                return
            except Exception as error:  # whatever MLflow raises where its store is away
                _log.warning("the ledger is away (%s); its entries wait in %s", first_line(error), self._journal.file)
                run = None  # opened again, it says which of these entries arrived
                pause = min(2 * pause, _LONGEST_PAUSE)
                with self._changed:
                    self._away = True
                    self._changed.notify_all()
                continue
            pause = _GATHER
            over = self._delivered(len(entries))

    def _give_up(self) -> None:
        with self._changed:
            self.superseded = True
            self._entries.clear()
            self._journal.remove()
            self._changed.notify_all()

    def _delivered(self, n: int) -> bool:
        """Forget the first ``n`` entries; whether the end was among them."""
        with self._changed:
            self._away = False
            del self._entries[:n]
            over = self._ended and not self._entries
            # Where the storage is away the journal stays: delivered again, its entries change nothing.
            with contextlib.suppress(OSError):
                if not self._entries:
                    self._journal.clear()
                if over:
                    self._journal.remove()
            self._changed.notify_all()
            return over


def _left_by(earlier: Sequence[Path]) -> list[Entry]:
    """Reports and samples that attempts which are over did not deliver."""
    left: list[Entry] = []
    for file in earlier:
        try:
            journal = Journal(file)
        except BlockingIOError:
            continue  # it is still alive, and finds out for itself that it is superseded
        left += [entry for entry in journal.entries() if "report" in entry or "sample" in entry]
        journal.close()
    return left
