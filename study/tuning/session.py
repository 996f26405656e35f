"""One session of a study on Ray: connect, run trials until the budget is spent, leave everything resumable."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

# Read by Ray when it is imported. Its snapshot is not what a study continues from (see docs/decisions), so it is
# written rarely; its own loggers would write every report a second time; usage statistics stay at home.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray import tune  # noqa: E402
from rich.console import Console  # noqa: E402

from study import metrics  # noqa: E402
from study.errors import InputError  # noqa: E402
from study.ledger import Ledger  # noqa: E402
from study.spec import Resources, StudySpec  # noqa: E402
from study.storage import Storage  # noqa: E402
from study.tuning.capacity import Capacity, Following  # noqa: E402
from study.tuning.ends import LedgerEnds  # noqa: E402
from study.tuning.faults import Faults, StorageGuard  # noqa: E402
from study.tuning.progress import StudyProgress  # noqa: E402
from study.tuning.scheduler import StudyScheduler  # noqa: E402
from study.tuning.searcher import StudySearcher  # noqa: E402
from study.tuning.trainable import StudyTrainable  # noqa: E402

_CONNECT_SECONDS = 5.0


def probe(address: str) -> None:
    """Raises :class:`InputError` where nothing answers at ``[ray://]HOST:PORT``: Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--address {address}: not of the form HOST:PORT (the head's, port 6379 by default)")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({error}); start it with `ray up cluster.yaml`, "
            "or leave --address out to run on this machine"
        ) from None


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[dict[str, float]]:
    """Join the cluster at ``address`` (None: the one that is found, else a local one); yields its resources."""
    if address:
        probe(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        if "include_dashboard" not in str(error):
            raise InputError(f"--address {address or 'auto'}: Ray refused: {str(error).splitlines()[0]}") from None
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def head_address() -> str:
    """The private address of the cluster's head, at which its other machines reach it."""
    return str(ray.get_runtime_context().gcs_address).rpartition(":")[0]


def concurrency(resources: Resources, cluster: dict[str, float], capacity: Capacity | None = None) -> int:
    """How many trials fit at once, now or with what may be rented. Raises :class:`InputError` where none does."""
    if capacity is not None and max(capacity.now, capacity.most):
        return max(capacity.now, capacity.most)
    fits = []
    for kind, unit, need in (("CPU", "CPUs", resources.cpus), ("GPU", "GPUs", resources.gpus)):
        have = cluster.get(kind, 0.0)
        if need > have:
            raise InputError(
                f"resources.{unit.lower()}: a trial asks for {need:g} {unit} and the cluster has {have:g}; "
                f"lower it in the specification or join a larger cluster with --address"
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
    progress = StudyProgress(
        total=total,
        concurrent=at_once,
        front_size=lambda: len(searcher.front()),
        time_budget=time_budget,
        console=console,
    )
    faults = Faults(storage.local / study)
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
    with progress:
        tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    if guard.full:
        raise InputError(
            f"results folder {storage.local}: {guard.full}; the study has stopped and every finished epoch is safe: "
            "free some space and type the same command"
        )
    left = None if time_budget is None else time_budget - (time.monotonic() - start)
    if following.returned and (left is None or left > 0):  # handed back when Ray had stopped asking for more
        run_trials(
            *(spec, searcher), storage=storage, study=study, ledger=ledger, cluster=cluster, time_budget=left,
            console=console, trainable=trainable,
        )  # fmt: skip


def storage_url(folder: Path) -> str:
    """Optuna's storage of a study, beside its other books."""
    return f"sqlite:///{folder / metrics.OPTUNA_FILE}"
