"""What the machine does while a trial runs: MLflow's own system metrics, told through the trial's book.

MLflow's own monitor writes past every fence, and gives up for good when the server is away once. So its readers
are used and its writer is not: a sample is an entry like a report, in the journal first.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from study.ledger.tracking import first_line
from study.ledger.writer import TrialBook

_EVERY = 10.0  # seconds, as MLflow samples
_log = logging.getLogger(__name__)


class MachineSampler:
    """Adds processor, memory, disk, network and GPU use to ``book`` every ``every`` seconds, from a thread of its own.

    The whole machine's, not the trial's share: trials that run side by side show the same.
    """

    def __init__(self, book: TrialBook, every: float = _EVERY) -> None:
        self._book = book
        self._every = every
        self._over = threading.Event()
        self._readers = _readers()
        self._thread = threading.Thread(target=self._work, name="machine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample, so that a trial of a few seconds has one too, and end."""
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        over = False
        while not over and not self._book.superseded:
            over = self._over.wait(self._every)
            try:
                self._book.sample(read(self._readers))
            except Exception as error:  # a driver that hangs up must not cost the curve of a training
                _log.warning("the machine cannot be sampled: %s", first_line(error))
                return


def read(readers: list[Any]) -> dict[str, float]:
    """MLflow's name of each quantity and its value now; the name has its unit."""
    values: dict[str, float] = {}
    for reader in readers:
        reader.clear_metrics()
        reader.collect_metrics()
        values |= reader.aggregate_metrics()
    return values


def _readers() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    readers: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        readers.append(GPUMonitor())
    except Exception:  # no GPU here
        return readers
    return readers
