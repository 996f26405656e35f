"""What is queued beside the search's own trials: twins, replicates, and what an earlier study found."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.trial import TrialState

from study import names
from study.search.encoding import decode, encode
from study.search.racing import most_uncertain
from study.search.stored import MEASURED, REPLICATE_OF, SEED, TWIN_OF, WARM, params_of, results, write_measured
from study.search.warm_start import WarmStart
from study.spec.space import Point, complete
from study.spec.study_spec import StudySpec
from study.storage.atomic import replacing
from study.storage.storage import Storage, trial_folder


def take_over(study: optuna.Study, spec: StudySpec, source: str, start: WarmStart, storage: Storage) -> None:
    """Take over what an earlier study found; asked again for the same study it changes nothing.

    The results are known to the sampler, and their points are not run again. The points are tried before anything is
    proposed, each from the checkpoint beside it where there is one.
    """
    warm = dict(study.user_attrs.get(WARM, {}))
    if source in warm:
        return
    for point, checkpoint in start.points:
        before = len(study.get_trials(deepcopy=False))
        study.enqueue_trial(encode(spec, point), skip_if_exists=True)
        if checkpoint is not None and len(study.get_trials(deepcopy=False)) > before:
            file = trial_folder(storage, study.study_name, before) / names.CHECKPOINT_FILE
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part:
                shutil.copyfile(checkpoint, part)
            storage.push(file)
    warm[source] = [
        {"params": encode(spec, point), "values": values, MEASURED: write_measured(report)}
        for point, values, report in start.results
    ]
    study.set_user_attr(WARM, warm)


def queue_replicates(study: optuna.Study, spec: StudySpec, wanted: int, at_once: int) -> int:
    """Queue further repetitions with other seeds, until the study has ``wanted``; how many, at most ``at_once``.

    Which: see :mod:`study.search.racing`. A queued one counts as if it had come out at its point's mean.
    """
    trials = study.get_trials(deepcopy=False)
    missing = wanted - sum(REPLICATE_OF in t.user_attrs for t in trials)
    groups = results(study, spec)
    values = [[list(t.values) for t in group] for group in groups]
    used = {group[0].number: 1 for group in groups}
    for trial in trials:
        if REPLICATE_OF in trial.user_attrs and trial.user_attrs[REPLICATE_OF] in used:
            used[trial.user_attrs[REPLICATE_OF]] += 1
    directions = [m.direction for m in spec.targets]
    queued = 0
    while queued < min(missing, at_once):
        i = most_uncertain(values, directions, seed=spec.seed)
        if i is None:
            break
        first = groups[i][0]
        base = int(spec.trial_config(decode(spec, first.params)).seed)
        attributes = {REPLICATE_OF: first.number, SEED: base + used[first.number]}
        study.enqueue_trial(first.params, user_attrs=attributes)
        used[first.number] += 1
        values[i].append([float(v) for v in np.mean(values[i], axis=0)])
        queued += 1
    return queued


def queue_twins(study: optuna.Study, spec: StudySpec, front: Sequence[tuple[int, Point, list[float]]]) -> int:
    """Queue, for every front point with lambda > 0, the same point with lambda = 0; how many are new.

    All trials of a study share their seed unless it is searched, so the pair differs in lambda alone.
    """
    zero = spec.space.get("reg_weight")
    if zero is None or not zero.contains(0.0):
        return 0
    # A stopped trial is no twin: it has no final scores to be paired with.
    trials = study.get_trials(deepcopy=False)
    known = [
        decode(spec, params_of(t))
        for t in trials
        if t.state not in (TrialState.FAIL, TrialState.PRUNED) and REPLICATE_OF not in t.user_attrs
    ]
    queued = 0
    for number, point, _ in front:
        if point.get("reg_weight", 0) == 0:
            continue
        twin = complete(spec.space, {**point, "reg_weight": 0.0})
        if twin not in known:
            known.append(twin)
            study.enqueue_trial(encode(spec, twin), user_attrs={TWIN_OF: number})
            queued += 1
    return queued
