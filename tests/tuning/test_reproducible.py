"""The same seed gives the same study with one worker, also in another process with another hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from benchmarks.control import scores
from benchmarks.record_curves import SPEC
from benchmarks.replay import ACCURACY, FAITHFULNESS
from study import names
from study.search.search import Search
from study.spec.study_spec import load_spec
from study.storage.storage import Storage
from study.tuning.job import Job, Settings
from study.tuning.scheduler import StudyScheduler
from study.tuning.searcher import StudySearcher

ROOT = Path(__file__).parents[2]
TRIALS = 24


def whole_study(sampler: str, seed: int) -> list[list[Any]]:
    """Point and epochs of every trial, in turn, by the real searcher and scheduler; curves are a formula."""
    spec = load_spec(SPEC, overrides={"budget.trials": TRIALS, "sampler": sampler, "seed": seed})
    search = Search(spec, "same", None)
    searcher = StudySearcher(search, Settings("same", Storage(Path()), ""))
    scheduler = StudyScheduler(search)
    ended: list[list[Any]] = []
    while isinstance(config := searcher.suggest(f"{len(ended):05d}"), dict):
        trial = SimpleNamespace(trial_id=f"{len(ended):05d}", config=config)
        point = {name: getattr(Job.of(config).trial.config, name) for name in spec.space}
        for epoch in (*spec.fidelity.rungs, spec.fidelity.max_epochs):
            last = epoch == spec.fidelity.max_epochs
            accuracy, faithfulness = scores(point, epoch, spec.fidelity.max_epochs)
            result = {"epoch": epoch, "state": names.COMPLETE if last else names.RUNNING,
                      ACCURACY: accuracy, FAITHFULNESS: faithfulness}  # fmt: skip
            if last or scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
                searcher.on_trial_complete(trial.trial_id, result=result)
                break
        ended.append([point, epoch])
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["auto", "tpe"])
def test_the_same_seed_gives_the_same_study_also_in_a_fresh_process(sampler: str) -> None:
    here = whole_study(sampler, 3)
    assert len(here) == TRIALS and len({epoch for _, epoch in here}) > 1, "nobody was stopped: the rungs are not tested"
    done = subprocess.run(
        [sys.executable, __file__, sampler, "3"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "12345"},
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == here
    assert whole_study(sampler, 4) != here


if __name__ == "__main__":
    print(json.dumps(whole_study(sys.argv[1], int(sys.argv[2]))))
