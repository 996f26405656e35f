"""How fast a study got where it is: hypervolume over trials, over wall-clock time and over device hours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from study import metrics
from study.search.front import Bools, Floats, hypervolume, nondominated, reference, signs

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.table import StudyTable


@dataclass(frozen=True)
class Anytime:
    """Arrays of one length, in the order in which trials ended (of every state): after how many trials, hours since
    the study began (breaks between sessions included) and device hours was which hypervolume reached.

    ``device`` is GPU or CPU: what a trial's resources name. Device hours are of training and scoring alone.
    """

    trials: np.ndarray[tuple[int], np.dtype[np.int64]]
    wall_hours: Floats
    device_hours: Floats
    hypervolume: Floats
    device: str


def busy_seconds(study: StudyTable, curves: pa.Table) -> Floats:
    """(trials,) seconds of training and scoring, of all epochs that the ledger holds; 0 where it holds none."""
    from pyarrow import compute

    spent = (metrics.EPOCH_SECONDS, metrics.EVALUATION_SECONDS)
    seconds: dict[str, float] = dict.fromkeys(study.column("run_id"), 0.0)
    for name in spent:
        mine = curves.filter(compute.equal(curves["metric"], name))
        for run_id, value in zip(mine["run_id"].to_pylist(), mine["value"].to_pylist(), strict=True):
            if run_id in seconds and math.isfinite(value):
                seconds[run_id] += value
    return np.array(list(seconds.values()), float)


def device_hours(study: StudyTable, curves: pa.Table) -> tuple[Floats, str]:
    """(trials,) hours times the GPUs of a trial, and "GPU"; its CPUs and "CPU" where it uses no GPU."""
    resources = study.spec.get("resources") or {}
    device, share = ("GPU", resources["gpus"]) if resources.get("gpus") else ("CPU", resources.get("cpus", 1))
    return busy_seconds(study, curves) / 3600 * float(share), device


def anytime(study: StudyTable, curves: pa.Table, eligible: Bools) -> Anytime:
    """``eligible`` (trials,): those that may be on the front; all that ended count as spent.

    The hypervolume is that of the means over seeds, so it may fall when a configuration is repeated.
    """
    ended = study.trials["ended"].cast("int64").to_numpy(zero_copy_only=False).astype(float)
    order = np.argsort(ended, kind="stable")[: int(np.isfinite(ended).sum())]
    hours, device = device_hours(study, curves)
    started = study.trials["started"].cast("int64").to_numpy()
    begin = started.min() if len(started) else 0
    better, worthless = study.values() * signs(study.objectives), reference(study.objectives)
    groups = study.replicates(eligible)
    group_of = {row: i for i, rows in enumerate(groups) for row in rows}
    means, n_seeds = np.full((len(groups), len(study.objectives)), np.nan), np.zeros(len(groups))
    front, volume, volumes = np.empty(0, int), 0.0, []
    for row in order:
        if row in group_of:
            i = group_of[row]
            n_seeds[i] += 1
            means[i] = better[row] if n_seeds[i] == 1 else means[i] + (better[row] - means[i]) / n_seeds[i]
            # A mean on the front that moves may uncover what it dominated.
            candidates = np.arange(len(groups)) if i in front else np.append(front, i)
            front = candidates[nondominated(means[candidates])]
            volume = hypervolume(means[front], worthless)
        volumes.append(volume)
    return Anytime(
        np.arange(1, len(order) + 1),
        (ended[order] - begin) / 3_600_000,
        np.cumsum(hours[order]),
        np.array(volumes, float),
        device,
    )
