"""The search's trials on Ray Tune, until the budget is spent; whatever ends the run, all of it can be continued."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from ray import tune
from rich.console import Console

from study.errors import StorageError
from study.search.search import Search
from study.tuning.capacity import Capacity
from study.tuning.ends import LedgerEnds
from study.tuning.faults import Faults, StorageGuard
from study.tuning.job import Settings
from study.tuning.progress import StudyProgress
from study.tuning.scheduler import StudyScheduler
from study.tuning.searcher import StudySearcher
from study.tuning.trainable import StudyTrainable


def run_trials(
    search: Search, settings: Settings, console: Console, *, trainable: type[StudyTrainable] = StudyTrainable
) -> None:
    """Run everything that :meth:`Search.remaining` counts, or until the specification's time budget is spent.

    ``trainable`` is what a trial is to Ray; a benchmark has trials that only sleep. Raises :class:`StorageError` where
    the storage is full.
    """
    seconds = search.spec.budget.time
    deadline = None if seconds is None else time.monotonic() + seconds
    more = search.remaining() > 0
    while more:
        returned = _run_once(search, settings, console, trainable, seconds)
        seconds = None if deadline is None else deadline - time.monotonic()
        more = returned and (seconds is None or seconds > 0)


def _run_once(
    search: Search, settings: Settings, console: Console, trainable: type[StudyTrainable], seconds: float | None
) -> bool:
    """Whether trials were handed back, because their machine was lost, when Ray had stopped asking for more."""
    spec, total = search.spec, search.remaining()
    folder = settings.storage.local / settings.study
    capacity = Capacity(spec.resources)
    scratch = folder / ".ray"  # nothing in Ray's own session folder outlives the session
    shutil.rmtree(scratch, ignore_errors=True)
    _log_to_file(folder / "ray.log")
    faults = Faults(folder)
    progress = StudyProgress(
        total=total,
        concurrent=min(total, capacity.at_once()),
        front_size=lambda: len(search.front()),
        time_budget=seconds,
        console=console,
        lost=faults.lost,
    )
    guard = StorageGuard(settings.storage.local, faults)
    searcher = StudySearcher(search, settings, capacity, faults.lost)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": settings.cpus, "gpu": settings.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=StudyScheduler(search),
            num_samples=total,
            max_concurrent_trials=total,  # Ray's limit is fixed at the start; the searcher's moves with the cluster
            time_budget_s=seconds,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="session",
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=spec.budget.retries),
            stop=guard,
            callbacks=[faults, LedgerEnds(search, faults.lost), progress],
            verbose=0,
        ),
    )
    with progress, _ended_by_sigterm_too():
        tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    if guard.full:
        raise StorageError(
            f"results folder {settings.storage.local}: {guard.full}; the study has stopped and every finished epoch is "
            "safe: free some space and type the same command"
        )
    return searcher.returned > 0


def _log_to_file(file: Path) -> None:
    """Ray's complaints are for whoever looks into a failed trial, not for the live table."""
    logger = logging.getLogger("ray")
    logger.handlers = [logging.FileHandler(file)]
    logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a log that cannot be written any more is no reason for a traceback


@contextlib.contextmanager
def _ended_by_sigterm_too() -> Iterator[None]:
    """`kill`, and the end of a container, end a session as Ctrl-C does; Ray's own way is a dump of its native stack."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
