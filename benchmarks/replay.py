"""A study in virtual time: a real searcher and a real scheduler on a simulated cluster, curves from a surrogate."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from benchmarks.surrogate import Shown, Surrogate
from study import metrics, names
from study.search.front import dominates
from study.spec.space import Point

#: What the metrics are called in the results that Ray hands around.
ACCURACY = f"report/{metrics.ACCURACY.ledger_name}"
FAITHFULNESS = f"report/{metrics.FAITHFULNESS.ledger_name}"
SUM = "report/sum"  # for schedulers of one metric
_ERRORS = (f"report/{metrics.ACCURACY_ERROR}", f"report/{metrics.FAITHFULNESS_ERROR}")
START_EPOCHS = 0.5  # what a trial's start costs, in typical epochs: a reused Ray actor takes half a second


class Contender(Protocol):
    """A searcher and a scheduler as Ray would drive them, and what the study asks of its trials."""

    searcher: Searcher
    scheduler: TrialScheduler
    rungs: tuple[int, ...]  # epochs after which its trials report, besides the last
    scored_at_rungs: bool  # faithfulness is paid for at rungs, not at the end alone

    def point(self, config: dict[str, Any]) -> Point:
        """The point of the space in a suggested configuration."""
        ...


@dataclass
class Ended:
    """A trial that is over. ``seconds``: virtual time since the study's begin. ``values``: as it was shown."""

    point: Point
    seconds: float
    epochs: int
    state: str
    values: np.ndarray


@dataclass
class Replay:
    """A replayed study. ``dominating`` and ``wrong_stops``: how often a trial dominated all that had reported at its
    rung (at least two others), and how often it was stopped there."""

    ended: list[Ended] = field(default_factory=list)
    seconds: float = 0.0
    dominating: int = 0
    wrong_stops: int = 0


@dataclass
class _Running:
    trial: Any
    point: Point
    shown: Shown
    stages: list[int]  # epochs at which something is decided, the rest of them


class Cluster:
    """``workers`` that each run one trial at a time.

    A trial reports after the rungs and after its last epoch; between them nothing is decided.
    """

    def __init__(self, surrogate: Surrogate, *, workers: int, epochs: int) -> None:
        self._surrogate = surrogate
        self._workers = workers
        self._epochs = epochs

    def run(self, contender: Contender, *, seed: int, trials: int, seconds: float = np.inf) -> Replay:
        """Until ``trials`` have begun and ended, or for ``seconds`` of virtual time.

        Raises ValueError for a rung after which no scores were recorded.
        """
        missing = sorted({*contender.rungs, self._epochs} - set(self._surrogate.epochs))
        if missing:
            raise ValueError(f"no scores were recorded after epoch {missing[0]}; there are {self._surrogate.epochs}")
        replay, at_rungs = Replay(), {epoch: [] for epoch in contender.rungs}
        numbers, order = itertools.count(), itertools.count()
        events: list[tuple[float, int, _Running]] = []

        def begin(now: float) -> None:
            number = next(numbers)
            trial_id = f"{number:05d}"
            config = contender.searcher.suggest(trial_id) if number < trials else Searcher.FINISHED
            if not isinstance(config, dict):
                return
            point = contender.point(config)
            trial = SimpleNamespace(trial_id=trial_id, config=config)
            contender.scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
            running = _Running(trial, point, self._surrogate.shown(point, seed), [*contender.rungs, self._epochs])
            start = START_EPOCHS * self._surrogate.typical_seconds()
            heapq.heappush(events, (now + start + self._seconds(contender, running, 0), next(order), running))

        for _ in range(self._workers):
            begin(0.0)
        while events:
            now, _, running = heapq.heappop(events)
            if now > seconds:
                replay.seconds = seconds
                break
            replay.seconds = now
            epoch = running.stages.pop(0)
            if self._goes_on(contender, running, epoch, replay, at_rungs, now):
                heapq.heappush(events, (now + self._seconds(contender, running, epoch), next(order), running))
            else:
                begin(now)
        return replay

    def _seconds(self, contender: Contender, running: _Running, epoch: int) -> float:
        """From ``epoch`` to the trial's next report."""
        train, score = self._surrogate.seconds(running.point)
        until = running.stages[0]
        if running.shown.diverges_after is not None and running.shown.diverges_after <= until:
            return train * max(1, running.shown.diverges_after - epoch)
        pays = contender.scored_at_rungs or until == self._epochs
        return train * (until - epoch) + (score if pays else 0.0)

    def _goes_on(
        self, contender: Contender, running: _Running, epoch: int, replay: Replay, at_rungs: Any, now: float
    ) -> bool:
        """As Ray's controller does with a result; False where the trial is over."""
        searcher, scheduler, trial = contender.searcher, contender.scheduler, running.trial
        shown = running.shown
        values = shown.values[shown.epochs.index(epoch)]
        if shown.diverges_after is not None and shown.diverges_after <= epoch:
            values = np.full(2, np.nan)
            state = names.DIVERGED
        else:
            state = names.COMPLETE if epoch == self._epochs else names.RUNNING
        result = self._result(shown, values, epoch, state)
        if state != names.RUNNING:
            scheduler.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
            searcher.on_trial_complete(trial.trial_id, result=result)
            replay.ended.append(Ended(running.point, now, epoch, state, values))
            return False
        others = np.array(at_rungs[epoch]).reshape(-1, 2)
        at_rungs[epoch].append(values)
        best = len(others) >= 2 and bool(dominates(values, others).all())
        stopped = scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP  # type: ignore[arg-type]
        replay.dominating += best
        replay.wrong_stops += best and stopped
        if not stopped:
            searcher.on_trial_result(trial.trial_id, result)
            return True
        searcher.on_trial_complete(trial.trial_id, result={**result, "done": True})
        replay.ended.append(Ended(running.point, now, epoch, names.STOPPED, values))
        return False

    def _result(self, shown: Shown, values: np.ndarray, epoch: int, state: str) -> dict[str, Any]:
        errors = shown.errors[shown.epochs.index(epoch)]
        return {
            "epoch": epoch,
            "training_iteration": epoch,
            "state": state,
            "reason": "non-finite loss" if state == names.DIVERGED else "",
            "done": state != names.RUNNING,
            ACCURACY: float(values[0]),
            FAITHFULNESS: float(values[1]),
            SUM: float(values.sum()),
            **{name: float(e) for name, e in zip(_ERRORS, errors, strict=True)},
        }
