"""Time a few real steps and scorings of every network of a space, while as many run at once as trials would.

Trials that share a machine slow each other down (memory, caches, turbo clocks), and not by a factor that one could
know; so each takes its turns in a process of its own, all of them at the same time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from study.config import TrialConfig
from study.errors import InputError, StudyError, UnavailableError
from study.names import PER_IMAGE_FILE
from study.planning.speeds import SPEED_KEYS, Profile, Speed
from study.spec.space import Choice, Point, complete
from study.spec.study_spec import StudySpec

_SECONDS = 15.0  # of timing, beside warm-up; more where a single step is long
_SLOT = 0.7  # seconds that one kind of work is repeated before the next has its turn
_SMALL = 16  # images with which a slow network is timed
_TOO_SLOW = 3.0  # seconds of a step, or of a scoring, above which fewer images are timed
_MASKED = 2  # images that an evaluation masks at least
_TEMPERATURE = 2.0  # of what is timed: not 1, at which some maps would be made once instead of twice
_KINDS = ("plain", "regularized", "classified", "scored", "masked", "saved")
_NICENESS = "RAY_worker_niceness"  # Ray's workers are that nice, 15 unless said otherwise
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
        except InputError:  # e.g. more parts than images: no trial is like that
            continue
        found.setdefault(tuple(getattr(config, key) for key in SPEED_KEYS), config)
    return list(found.values())


def slots(spec: StudySpec) -> int:
    """Trials that this machine runs at once (at least 1: a GPU that is asked for may be in another machine)."""
    import torch

    return max(1, spec.resources.slots(len(os.sched_getaffinity(0)), torch.cuda.device_count() or math.inf))


def measure(spec: StudySpec, *, n_classes: int, at_once: int, seconds: float = _SECONDS) -> Profile:
    """Time the space of ``spec`` on this machine with ``at_once`` processes, fewer where it has no room for them.

    Raises :class:`UnavailableError` where a process that times dies (memory, most often).
    """
    import torch

    from study.trial.trial import default_device

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
    times = [{kind: [t for r in results for t in r[i]["times"][kind]] for kind in _KINDS} for i in range(len(configs))]
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
    """Of each kind. Scored images were timed with ``_MASKED`` of them masked and with all of them, both per image.

    A difference of two times of a busy machine may be anything, so each has a least: scoring classifies an image with
    each of the cells deleted, and masking classifies it with as many halves of them.
    """
    from study.faithfulness.grid import CELLS

    found = {kind: statistics.median(values) for kind, values in times.items()}
    least = CELLS**2 * found["classified"]
    masked = max(least, (found["masked"] - found["scored"]) / (1 - _MASKED / images))
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
    """In which a fresh process imports what a trial's process imports; the second time, when the disk's cache is warm.

    Where the tuning stack is not installed, what a machine like those of the documents takes.
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
    """Standard deviation of log(time / its median), over all steps and scorings that were repeated."""
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
    """One process that times everything, in turns, until ``seconds`` are over; what it found goes into ``pipe``."""
    import torch

    from study.trial.trial import default_device

    os.nice(int(os.environ.get(_NICENESS, 15)))
    device = default_device()
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.cuda.set_device(index % torch.cuda.device_count())
    try:
        benches = [_Bench(TrialConfig.from_dict(values), n_classes, device) for values in configs]
        works = [(i, kind) for i in range(len(benches)) for kind in _KINDS]
        slot = min(_SLOT, seconds / len(works) / 2)
        times: list[dict[str, list[float]]] = [{kind: [] for kind in _KINDS} for _ in benches]
        shift = index * len(works) // 2  # neighbours on the machine do different work, as trials do
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


class _Bench:
    """One network with everything that a trial does with it, on random images."""

    def __init__(self, config: TrialConfig, n_classes: int, device: Any) -> None:
        import torch

        from study.networks import build
        from study.training.engine import make_step
        from study.training.loop import make_optimizer

        torch.manual_seed(0)
        # A small rate: random labels are not to make a network diverge within the measurement.
        base = dataclasses.replace(config, epochs=1, rungs=(), lr=1e-4, warmup_epochs=0)
        self._configs = {
            "plain": dataclasses.replace(base, reg_weight=0.0),
            "regularized": dataclasses.replace(
                base, reg_weight=1.0, reg_error=config.reg_error or "cosine", reg_interval=1
            ),
        }
        self._device = device
        self._n_classes = n_classes
        self._network = build(config.network, n_classes).to(device).to(memory_format=torch.channels_last)
        self._optimizer = make_optimizer(self._network, config)
        self._step_with = make_step(config.engine, device)
        self._evaluation = config.evaluation
        self.scale = 1.0  # seconds of the whole batch per second of what is timed
        self._images(_SMALL)
        self._choose_batch()
        self._score(2)  # the first call is slow
        # What an evaluation starts with takes as long as many images of a small network: time as many as there is time.
        an_image = max((self._score(12) - self._score(2)) / 10, 1e-4)
        most = min(self._evaluation.batch_size, self._evaluation.images or 10**9, 100, int(_TOO_SLOW / an_image))
        self.scored_images = max(4, most)
        self._once = {"plain": self._steps("plain", 1), "regularized": self._steps("regularized", 1)}
        self._once |= {"classified": self._classify(), "saved": self._save()}
        self._once |= {"scored": self._score(masked=_MASKED), "masked": self._score()}

    def _choose_batch(self) -> None:
        """All of the batch, or, where a step of it takes long, a few images and :attr:`scale`."""
        whole, batch = self._configs, self._configs["plain"].batch_size
        if self._device.type == "cpu" and batch > _SMALL:
            self._configs = {k: dataclasses.replace(c, batch_size=_SMALL, accumulate=1) for k, c in whole.items()}
            if min(self._steps("plain", 1), self._steps("plain", 1)) * batch / _SMALL > _TOO_SLOW:
                self.scale = batch / _SMALL
                return
            self._configs = whole
        self._images(max(batch, 100))

    def _images(self, n: int) -> None:
        import torch

        self._x = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, device=self._device)
        self._y = torch.randint(0, self._n_classes, (n,), device=self._device)

    def timed(self, kind: str, slot: float) -> float:
        """Seconds of one step, image or checkpoint: the mean over about ``slot`` seconds, one repetition at least."""
        works: dict[str, Callable[[int], float]] = {
            "plain": lambda n: self.scale * self._steps("plain", n),
            "regularized": lambda n: self.scale * self._steps("regularized", n),
            "classified": lambda n: statistics.fmean(self._classify() for _ in range(n)) / len(self._x),
            "scored": lambda n: statistics.fmean(self._score(masked=_MASKED) for _ in range(n)) / self.scored_images,
            "masked": lambda n: statistics.fmean(self._score() for _ in range(n)) / self.scored_images,
            "saved": lambda n: statistics.fmean(self._save() for _ in range(n)),
        }
        return works[kind](min(200, max(1, round(slot / max(self._once[kind], 1e-4)))))

    def _steps(self, kind: str, n: int) -> float:
        """Seconds of one step, by the loop that trains."""
        from study.training.loop import train_epoch

        config = self._configs[kind]
        rows = [i % len(self._x) for i in range(n * config.batch_size)]
        result = train_epoch(
            self._network, self._optimizer, self._x[rows], self._y[rows], config, 0, (0.5,) * 3, (0.25,) * 3,
            step_with=self._step_with,
        )  # fmt: skip
        return result.seconds / n

    def _classify(self) -> float:
        import torch

        from study.data.augment import normalize

        start = time.perf_counter()
        self._network.eval()
        try:
            with torch.no_grad():
                self._network(normalize(self._x, (0.5,) * 3, (0.25,) * 3)).argmax(1).sum().item()
        finally:
            self._network.train()
        return time.perf_counter() - start

    def _score(self, n: int | None = None, masked: int | None = None) -> float:
        """Seconds of scoring ``n`` images (None: :attr:`scored_images`), ``masked`` of them (None: all) masked too."""
        from study.faithfulness import evaluate_faithfulness

        n = n or self.scored_images
        report = evaluate_faithfulness(
            self._network, self._x[:n].cpu(), self._y[:n].cpu(), mean=(0.5,) * 3, std=(0.25,) * 3,
            config=dataclasses.replace(self._evaluation, masking_images=masked), temperature=_TEMPERATURE,
            device=self._device,
        )  # fmt: skip
        if masked is None:
            self._table = report.per_image
        return report.seconds

    def _save(self) -> float:
        from study.training.checkpoint import save_checkpoint

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "checkpoint"
            start = time.perf_counter()
            save_checkpoint(file, self._network, self._optimizer, {})
            seconds = time.perf_counter() - start
            self._checkpoint_bytes = file.stat().st_size
        return seconds

    def sizes(self) -> dict[str, float]:
        """Bytes of the files that a trial leaves: measured, as they are compressed."""
        from study.faithfulness.report import write_per_image

        def table_bytes(rows: int) -> int:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / PER_IMAGE_FILE
                write_per_image(file, {k: v[:rows] for k, v in self._table.items()})
                return file.stat().st_size

        n = len(self._table["label"])
        model = sum(t.numel() * t.element_size() for t in self._network.state_dict().values())
        row = (table_bytes(n) - table_bytes(1)) / max(n - 1, 1)
        return {
            "checkpoint_bytes": float(self._checkpoint_bytes),
            "model_bytes": float(model),
            "row_bytes": row,
            "table_bytes": table_bytes(1) - row,
        }
