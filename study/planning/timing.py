"""Time a few real steps and scorings of every network of a space, while as many run at once as trials would.

Trials that share a machine slow each other down (memory, caches, turbo clocks) by a factor that is not known
beforehand. So as many processes as trials take the same measurements at the same time.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from study.config import TrialConfig
from study.errors import InputError, StudyError, UnavailableError
from study.planning.speeds import SPEED_KEYS, Profile, Speed
from study.spec.space import Choice, Point, complete
from study.spec.study_spec import StudySpec

_SECONDS = 15.0  # of timing, beside warm-up; more where a single step is long
_SLOT = 0.7  # seconds that one kind of work is repeated before the next has its turn
_NICENESS = "RAY_worker_niceness"  # environment variable with the niceness of Ray's workers, 15 by default
_LOAD_THE_STACK = "import study.tuning.session, study.trial.trial"


def configurations(spec: StudySpec) -> list[TrialConfig]:
    """One regularized training for every combination of values that changes the speed: ends of ranges, all choices."""
    axes: list[list[Any]] = []
    names = [name for name in SPEED_KEYS if name in spec.space]
    for name in names:
        parameter = spec.space[name]
        axes.append(list(parameter.choice) if isinstance(parameter, Choice) else [int(b) for b in parameter.bounds])
    found: dict[tuple[Any, ...], TrialConfig] = {}
    for values in itertools.product(*axes):
        partial: Point = dict(zip(names, values, strict=True))
        weight = spec.space.get("reg_weight")
        if weight is not None:
            partial["reg_weight"] = max(float(v) for v in weight.corners())
        try:
            config = spec.trial_config(complete(spec.space, partial))
        except InputError:  # an invalid combination, such as more parts than images, is no trial
            continue
        found.setdefault(tuple(getattr(config, key) for key in SPEED_KEYS), config)
    return list(found.values())


def slots(spec: StudySpec) -> int:
    """Trials that this machine runs at once; at least 1, because a requested GPU may be in another machine."""
    import torch

    return max(1, spec.resources.slots(len(os.sched_getaffinity(0)), torch.cuda.device_count() or math.inf))


def measure(spec: StudySpec, *, n_classes: int, at_once: int, seconds: float = _SECONDS) -> Profile:
    """Time the space of ``spec`` on this machine with ``at_once`` processes, fewer where it has no room for them.

    Raises :class:`UnavailableError` where a process that times dies (memory, most often).
    """
    import torch

    from study.networks.state import default_device
    from study.planning.bench import KINDS

    begin = time.perf_counter()
    room = slots(spec)
    n = min(at_once, room)
    configs = configurations(spec)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(n)
    cores = min(max(1, int(spec.resources.cpus)), len(os.sched_getaffinity(0)))
    task = [config.to_dict() for config in configs], n_classes, cores, seconds
    pipes, processes = [], []
    for index in range(n):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(index, theirs, barrier, *task), daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        results = [_received(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    start = _stack_seconds()
    times = [{kind: [t for r in results for t in r[i]["times"][kind]] for kind in KINDS} for i in range(len(configs))]
    device = default_device()
    return Profile(
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {cores} core{'s' * (cores > 1)} each",
        at_once=n,
        slots=room,
        start=start,
        spread=_spread(times),
        seconds=time.perf_counter() - begin,
        stack=f"torch {torch.__version__}",
        scaled=tuple(sorted({c.network for c, r in zip(configs, results[0], strict=True) if r["scaled"]})),
        speeds=tuple(
            Speed(
                **{key: getattr(config, key) for key in SPEED_KEYS},
                **_medians(t, r["scored_images"]),
                **r["bytes"],
            )
            for config, t, r in zip(configs, times, results[0], strict=True)
        ),
    )


def _medians(times: Mapping[str, list[float]], images: int) -> dict[str, Any]:
    """Seconds of each kind of work. Images were scored with ``MASKED`` of them masked, and with all, both per image.

    The difference of two times on a busy machine may be anything, so both have a lower bound: scoring classifies an
    image with each of the cells deleted, and masking classifies it with as many halves of them.
    """
    from study.faithfulness.grid import CELLS
    from study.planning.bench import MASKED

    found = {kind: statistics.median(values) for kind, values in times.items()}
    least = CELLS**2 * found["classified"]
    masked = max(least, (found["masked"] - found["scored"]) / (1 - MASKED / images))
    return {**found, "scored": max(least, found["masked"] - masked), "masked": masked}


def _received(pipe: Connection) -> Any:
    try:
        result = pipe.recv()
    except EOFError:
        raise UnavailableError(
            "--plan: a process that timed a network died; with less memory than trials need, lower --at-once or "
            "resources in the specification"
        ) from None
    if isinstance(result, StudyError):
        raise result
    return result


def _stack_seconds() -> float:
    """Seconds that a fresh process needs to import what a trial's process imports, with a warm disk cache.

    4 where the tuning stack is not installed.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _LOAD_THE_STACK], env=environment, capture_output=True, check=False
        )
        if done.returncode != 0:
            return 4.0
        taken.append(time.perf_counter() - start)
    return min(taken)


def _spread(times: Sequence[Mapping[str, list[float]]]) -> float:
    """Standard deviation of log(time / median), over all steps and scorings that were repeated."""
    logs = []
    for kinds in times:
        for kind in ("plain", "regularized", "scored", "masked"):
            middle = statistics.median(kinds[kind])
            logs += [math.log(t / middle) for t in kinds[kind]] if len(kinds[kind]) > 1 else []
    return math.sqrt(statistics.fmean(x * x for x in logs)) if logs else 0.1


def _child(
    index: int,
    pipe: Connection,
    barrier: Any,
    configs: list[dict[str, Any]],
    n_classes: int,
    threads: int,
    seconds: float,
) -> None:
    """One process that times everything in turns for ``seconds`` and sends the times through ``pipe``."""
    import torch

    from study.networks.state import default_device
    from study.planning.bench import KINDS, Bench

    os.nice(int(os.environ.get(_NICENESS, 15)))
    device = default_device()
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.cuda.set_device(index % torch.cuda.device_count())
    try:
        benches = [Bench(TrialConfig.from_dict(values), n_classes, device) for values in configs]
        works = [(i, kind) for i in range(len(benches)) for kind in KINDS]
        slot = min(_SLOT, seconds / len(works) / 2)
        times: list[dict[str, list[float]]] = [{kind: [] for kind in KINDS} for _ in benches]
        shift = index * len(works) // 2  # so that processes do different work at one time, as trials do
        barrier.wait(600)
        end = time.perf_counter() + seconds
        while True:
            for i, kind in works[shift:] + works[:shift]:
                times[i][kind].append(benches[i].timed(kind, slot))
            if time.perf_counter() > end:
                break
        pipe.send([
            {"times": t, "bytes": bench.sizes(), "scaled": bench.scale != 1, "scored_images": bench.scored_images}
            for t, bench in zip(times, benches, strict=True)
        ])  # fmt: skip
    except StudyError as error:
        barrier.abort()
        pipe.send(error)
