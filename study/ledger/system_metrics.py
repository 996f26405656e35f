"""What the machine does while a trial runs: MLflow's own system metrics, sent through the trial's writer.

MLflow's monitor is not used, only its readers: it writes to a run that another attempt has taken over, and it stops for
good once the server is away.
"""

from __future__ import annotations

import logging
import threading

from study.ledger.mlflow_internals import read_system_metrics, system_metric_readers
from study.ledger.tracking import first_line
from study.ledger.writer import TrialWriter

_EVERY = 10.0  # seconds, as MLflow samples
_log = logging.getLogger(__name__)


class SystemMetricsSampler:
    """Adds processor, memory, disk, network and GPU use to ``writer`` every ``every`` seconds, from its own thread.

    The use is the whole machine's, not the trial's share: trials that run side by side show the same.
    """

    def __init__(self, writer: TrialWriter, every: float = _EVERY) -> None:
        self._writer = writer
        self._every = every
        self._over = threading.Event()
        self._readers = system_metric_readers()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample, so that a trial of a few seconds has one too, and end."""
        self._over.set()
        self._thread.join()

    @property
    def running(self) -> bool:
        """Whether samples are taken: not before :meth:`start`, not after :meth:`stop`, not for a superseded attempt."""
        return self._thread.is_alive()

    def _work(self) -> None:
        over = False
        while not over and not self._writer.superseded:
            over = self._over.wait(self._every)
            try:
                self._writer.sample(read_system_metrics(self._readers))
            except Exception as error:  # a driver that hangs must not end a training
                _log.warning("the machine cannot be sampled: %s", first_line(error))
                return
