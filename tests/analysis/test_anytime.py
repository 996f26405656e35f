"""Hypervolume over trials, wall clock and device hours: by hand, and against the front of means at every end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_studies import MakeStudy, scored

from analysis.load import load_curves, load_study
from analysis.statistics.anytime import anytime, busy_seconds, device_hours
from analysis.statistics.front import eligible, find_front
from benchmarks.synthetic import write_runs
from study import names
from study.ledger import Ledger, default_tracking_uri
from study.search.front import hypervolume, mean_front, reference, signs


def test_device_hours_are_training_and_scoring_times_the_share(storage: Path) -> None:
    ledger = Ledger(default_tracking_uri(storage), "large")
    write_runs(ledger, 0, 40)
    study = load_study(ledger)
    curves = load_curves(ledger, study)
    epochs = np.array(study.column("epoch"))
    assert busy_seconds(study, curves) == pytest.approx(20 * epochs)
    hours, device = device_hours(study, curves)
    assert device == "GPU" and hours == pytest.approx(epochs * 20 / 3600 / 2)

    possible = eligible(study)
    way = anytime(study, curves, possible)
    ended = np.array([d.timestamp() for d in study.column("ended")])
    order = np.argsort(ended, kind="stable")
    better, samples = study.values() * signs(study.objectives), {}
    for row, volume in zip(order, way.hypervolume, strict=True):
        if possible[row]:
            samples.setdefault(study.configurations[row], []).append(better[row])
        means, on_front = mean_front([np.array(scores) for scores in samples.values()])
        assert volume == (pytest.approx(hypervolume(means[on_front], reference(study.objectives))) if samples else 0)
    assert max(map(len, samples.values())) == 2  # configurations that were repeated are among them
    assert way.hypervolume[-1] == pytest.approx(find_front(study).volume)
    assert way.trials.tolist() == list(range(1, 41))
    assert way.device_hours[-1] == pytest.approx(hours.sum())
    assert way.wall_hours[-1] == pytest.approx((max(ended) - study.column("started")[0].timestamp()) / 3600)


def test_trials_that_run_or_say_nothing_cost_nothing_yet(make_study: MakeStudy) -> None:
    rows = [(names.COMPLETE, {}, scored(10, 2), []), (names.RUNNING, {}, scored(90, 9), [])]
    ledger = make_study([*rows, (names.FAILED, {}, {}, [])])
    study = load_study(ledger)
    way = anytime(study, load_curves(ledger, study), eligible(study))
    assert way.trials.tolist() == [1, 2] and way.hypervolume.tolist() == [20, 20]
    assert way.device_hours.tolist() == [0, 0] and way.device == "CPU"


def test_an_empty_study_has_an_empty_way(make_study: MakeStudy) -> None:
    ledger = make_study([])
    study = load_study(ledger)
    assert len(anytime(study, load_curves(ledger, study), eligible(study)).hypervolume) == 0
