"""The ways to search that are compared: ours, and what Ray and Optuna have in stock."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from benchmarks.replay import ACCURACY, FAITHFULNESS, SUM
from study.search.encoding import encode, suggest_point
from study.search.front import ranks
from study.search.proposer import Learning
from study.search.rungs import Rungs
from study.search.search import Search
from study.spec.space import Point, ordered
from study.spec.study_spec import StudySpec
from study.spec.terms import Stopping
from study.storage.storage import Storage
from study.tuning.job import Job, Settings
from study.tuning.scheduler import StudyScheduler
from study.tuning.searcher import StudySearcher


@dataclass
class Entrant:
    """See :class:`benchmarks.replay.Contender`."""

    spec: StudySpec
    searcher: Searcher
    scheduler: TrialScheduler
    scored_at_rungs: bool

    @property
    def rungs(self) -> tuple[int, ...]:
        return self.spec.fidelity.rungs

    def point(self, config: dict[str, Any]) -> Point:
        if "point" in config:
            return config["point"]  # type: ignore[no-any-return]
        values = Job.of(config).trial.config
        point: Point = {}
        for name in ordered(self.spec.space):
            if self.spec.active(name, point):
                point[name] = getattr(values, name)
        return point


#: Chosen on seeds below 100: before epoch 6 of 27 the recorded curves tell nothing of faithfulness at the end.
RUNGS = (6, 13)


def ours(spec: StudySpec, *, learning: Learning = "forecast", **changes: Any) -> Entrant:
    """The product's searcher and scheduler; ``changes`` to the specification, ``stopping`` merged with its own."""
    changes.setdefault("fidelity", spec.fidelity.model_copy(update={"rungs": RUNGS}))
    stopping = changes.pop("stopping", {})
    if stopping is not None and spec.stopping is not None:
        stopping = spec.stopping.model_copy(update=stopping)
    spec = spec.model_copy(update={**changes, "stopping": stopping})
    search = Search(spec, "replay", None, learning=learning)
    searcher = StudySearcher(search, Settings("replay", Storage(Path()), ""))
    return Entrant(spec, searcher, StudyScheduler(search), scored_at_rungs=spec.halving is not None)


def stock(spec: StudySpec, metrics: Sequence[str], *, asha: bool, random: bool = False) -> Entrant:
    """Ray's ``OptunaSearch`` as it comes; ``asha``: with Ray's ``AsyncHyperBandScheduler`` on the first metric.

    Ray's ASHA gets the study's rungs: grace period, reduction and horizon. ``random``: Optuna's random sampler in
    place of its own choice, which is what ASHA's paper has.
    """
    logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel(logging.ERROR)  # it warns of every NaN
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searcher = OptunaSearch(
        lambda trial: {"point": suggest_point(spec, lambda name, kind: _suggest(trial, name, kind))},
        metric=list(metrics) if len(metrics) > 1 else metrics[0],
        mode=["max"] * len(metrics) if len(metrics) > 1 else "max",
        points_to_evaluate=[encode(spec, point) for point in spec.first_points()],
        sampler=optuna.samplers.RandomSampler(seed=spec.seed) if random else None,
        seed=None if random else spec.seed,
    )
    scheduler: TrialScheduler = FIFOScheduler()
    if asha:
        np.random.seed(spec.seed)  # it draws its bracket from numpy's global state
        scheduler = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=metrics[0],
            mode="max",
            max_t=spec.fidelity.max_epochs,
            grace_period=spec.fidelity.rungs[0],
            reduction_factor=3,
        )
    return Entrant(spec, searcher, scheduler, scored_at_rungs=asha and metrics[0] != ACCURACY)


def _suggest(trial: Any, name: str, kind: Any) -> Any:
    """What Ray hands to a define-by-run function takes no distributions."""
    if isinstance(kind, optuna.distributions.CategoricalDistribution):
        return trial.suggest_categorical(name, kind.choices)
    if isinstance(kind, optuna.distributions.IntDistribution):
        return trial.suggest_int(name, kind.low, kind.high, log=kind.log)
    return trial.suggest_float(name, kind.low, kind.high, log=kind.log)


class NaiveRungs(Rungs):
    """Reads the sorted indices of a non-dominated sort as priorities, as Syne Tune's MO-ASHA does."""

    def add(self, number: int, epoch: int, values: Sequence[float], errors: Sequence[float]) -> bool:
        if not self.record(number, epoch, values):
            return True
        rung = self._rungs[(self.bracket(number), epoch)]
        if rung.n < self._reduction:
            return True
        if not np.isfinite(values).all():
            return False
        priorities = np.lexsort((rung.keys, ranks(rung.values)))
        return bool(priorities[-1] * self._reduction < rung.n)


def naive(spec: StudySpec) -> Entrant:
    """Ours but for whom it stops."""
    entrant = ours(spec, sampler="random", fidelity=spec.fidelity)
    assert isinstance(entrant.scheduler, StudyScheduler)
    entrant.scheduler._rungs = NaiveRungs(["maximize"] * 2, spec.fidelity.rungs, seed=spec.seed)
    return entrant


_BOTH = (ACCURACY, FAITHFULNESS)
CONTENDERS: dict[str, Callable[[StudySpec], Entrant]] = {
    "fifo_tpe": lambda spec: stock(spec, _BOTH, asha=False),
    "fifo_random": lambda spec: ours(spec, sampler="random", stopping=None),
    "nsga2": lambda spec: ours(spec, sampler="nsga2", stopping=None),
    "asha_accuracy": lambda spec: stock(spec, [ACCURACY], asha=True),
    "asha_sum": lambda spec: stock(spec, [SUM], asha=True),
    "asha_accuracy_random": lambda spec: stock(spec, [ACCURACY], asha=True, random=True),
    "asha_sum_random": lambda spec: stock(spec, [SUM], asha=True, random=True),
    "naive": naive,
    "ours": lambda spec: ours(spec),
}
#: What a plain run compares.
MAIN = ("fifo_tpe", "fifo_random", "nsga2", "asha_accuracy", "asha_sum", "asha_accuracy_random", "asha_sum_random",
        "naive", "ours")  # fmt: skip


def contender(name: str) -> Callable[[StudySpec], Entrant]:
    """By name; ``ours:KEY=VALUE:...`` is ours with something changed, to see what it is worth.

    Keys: ``sampler``, ``learning``, ``rungs`` (epochs joined by +), ``stopping=null``, and those of ``stopping``
    (``reduction``, ``brackets``, ``noise_tolerance``, ``keep_baselines``). Raises KeyError for an unknown name.
    """
    base, *settings = name.split(":")
    if base != "ours" or not settings:
        return CONTENDERS[name]
    changes: dict[str, Any] = {"stopping": {}}
    for setting in settings:
        key, value = setting.split("=")
        if key == "stopping":
            changes["stopping"] = None
        elif key == "rungs":
            changes["fidelity"] = tuple(int(epoch) for epoch in value.split("+"))
        elif key in ("sampler", "learning"):
            changes[key] = value
        elif key in Stopping.model_fields:
            changes["stopping"][key] = yaml.safe_load(value)
        else:
            raise KeyError(name)

    def make(spec: StudySpec) -> Entrant:
        mine = dict(changes)
        if "fidelity" in mine:
            mine["fidelity"] = spec.fidelity.model_copy(update={"rungs": mine["fidelity"]})
        return ours(spec, **mine)

    return make
