"""One session of a study on Ray: run trials until the budget is spent, leave everything resumable."""

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

from study import names
from study.errors import InsufficientResourcesError, StorageError
from study.ledger import Ledger
from study.spec.study_spec import Resources, StudySpec
from study.storage.storage import Storage
from study.tuning.capacity import Capacity, Following
from study.tuning.ends import LedgerEnds
from study.tuning.faults import Faults, StorageGuard
from study.tuning.progress import StudyProgress
from study.tuning.scheduler import StudyScheduler
from study.tuning.searcher import StudySearcher
from study.tuning.trainable import StudyTrainable


def concurrency(resources: Resources, cluster: dict[str, float], capacity: Capacity | None = None) -> int:
    """How many trials fit at once, now or with what may be rented.

    Raises :class:`InsufficientResourcesError` where none does.
    """
    if capacity is not None and max(capacity.now, capacity.most):
        return max(capacity.now, capacity.most)
    fits = []
    for kind, unit, need in (("GPU", "GPUs", resources.gpus), ("CPU", "CPUs", resources.cpus)):
        have = cluster.get(kind, 0.0)
        if need > have:
            raise InsufficientResourcesError(
                f"a trial asks for {need:g} {unit} and the cluster has {have:g}; "
                "lower it in the specification or join a larger cluster with --address",
                key=f"resources.{unit.lower()}",
                resource=kind,
            )
        if need > 0:
            fits.append(int(have / need + 1e-9))
    return max(1, min(fits))


def _log_to_file(file: Path) -> None:
    """Ray's complaints are for whoever looks into a failed trial, not for the live table."""
    logger = logging.getLogger("ray")
    logger.handlers = [logging.FileHandler(file)]
    logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a log that cannot be written any more is no reason for a traceback


def run_trials(
    spec: StudySpec,
    searcher: StudySearcher,
    *,
    storage: Storage,
    study: str,
    ledger: Ledger,
    cluster: dict[str, float],
    time_budget: float | None,
    console: Console,
    trainable: type[StudyTrainable] = StudyTrainable,
) -> None:
    """Run everything that :meth:`StudySearcher.remaining` counts, or until ``time_budget`` seconds are over.

    ``trainable`` is what a trial is to Ray; a benchmark has trials that only sleep.
    """
    total = searcher.remaining()
    if total == 0:
        return
    capacity = Capacity(spec.resources)
    at_once = min(total, max(capacity.most, capacity.now, concurrency(spec.resources, cluster, capacity)))
    # Ray's own session folder holds nothing that outlives the session.
    scratch = storage.local / study / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)
    _log_to_file(storage.local / study / "ray.log")
    faults = Faults(storage.local / study)
    progress = StudyProgress(
        total=total,
        concurrent=at_once,
        front_size=lambda: len(searcher.front()),
        time_budget=time_budget,
        console=console,
        lost=faults.lost,
    )
    guard = StorageGuard(storage.local, faults)
    following = Following(searcher, capacity, faults.lost)
    start = time.monotonic()
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": spec.resources.cpus, "gpu": spec.resources.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=following,
            scheduler=StudyScheduler(spec, searcher),
            num_samples=total,
            max_concurrent_trials=total,  # Ray's limit is fixed at the start; Following moves with the cluster
            time_budget_s=time_budget,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="session",
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=spec.budget.retries),
            stop=guard,
            callbacks=[faults, LedgerEnds(ledger, storage, searcher, faults.lost), progress],
            verbose=0,
        ),
    )
    with progress, _ended_by_sigterm_too():
        tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    if guard.full:
        raise StorageError(
            f"results folder {storage.local}: {guard.full}; the study has stopped and every finished epoch is safe: "
            "free some space and type the same command"
        )
    left = None if time_budget is None else time_budget - (time.monotonic() - start)
    if following.returned and (left is None or left > 0):  # handed back when Ray had stopped asking for more
        run_trials(
            *(spec, searcher), storage=storage, study=study, ledger=ledger, cluster=cluster, time_budget=left,
            console=console, trainable=trainable,
        )  # fmt: skip


@contextlib.contextmanager
def _ended_by_sigterm_too() -> Iterator[None]:
    """`kill`, and the end of a container, end a session as Ctrl-C does; Ray's own way is a dump of its native stack."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def storage_url(folder: Path) -> str:
    """Optuna's storage of a study, beside its other books."""
    return f"sqlite:///{folder / names.OPTUNA_FILE}"
