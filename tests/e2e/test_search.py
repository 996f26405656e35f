"""The search through the command line: early stopping, NaN, kills, extension, warm start, forks. Everything is real."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial

from study import metrics, names
from study.search.rungs import Rungs

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Two points of the space cannot learn (lr 1e-6) and one diverges at once (its rate times the weight decay is 100).
SPEC = """
objectives: {accuracy: maximize, faithfulness: maximize}
space:
  lr: {choice: [0.1, 0.2, 1.0e-6, 2.0e-6, 1000]}
  reg_weight: {choice: [0, 7.5e-3, 0.1]}
fixed: {network: tiny, batch_size: 32, schedule: constant, weight_decay: 0.1}
fidelity: {max_epochs: 3, rungs: [1]}
stopping: {reduction: 2, noise_tolerance: 0}
constraints: {accuracy: {min: 5}}
resources: {cpus: CPUS}
data: {source: shapes, train_images: 320, validation_images: 100}
evaluation: {images: 40}
sampler: random
budget: {trials: 8}
known_points: [{lr: 1000, reg_weight: 0.1}, {lr: 1.0e-6, reg_weight: 0.1}, {lr: 2.0e-6, reg_weight: 0.1}]
""".replace("CPUS", str(os.cpu_count()))  # one trial after the other: the order of decisions is that of the numbers


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "study.run", *arguments], cwd=folder, env=environment(folder), capture_output=True,
        text=True, timeout=400, check=False,
    )  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "STUDY_CACHE": str(folder / "cache")}


def stored(folder: Path, name: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/results/{name}/optuna.db").trials


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was killed once and then run to its end."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "s.yaml").write_text(SPEC)
    driver = subprocess.Popen(
        [sys.executable, "-m", "study.run", "s.yaml"], cwd=folder, env=environment(folder),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    try:
        while not (folder / "results/s/trials/0003/checkpoint.safetensors").exists():
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        driver.kill()
        driver.wait()
    again = run(folder, "s.yaml")
    assert again.returncode == 0, again.stderr
    return folder


def test_stopped_trials_are_pruned_and_diverged_ones_fail_and_none_runs_for_ever(folder: Path) -> None:
    trials = stored(folder, "s")
    states = [t.state.name for t in trials]
    assert len(trials) == 8 and "RUNNING" not in states
    by_lr = {t.params["lr"]: t for t in trials if t.params["reg_weight"] == 0.1}
    assert by_lr[1000].state.name == "FAIL" and by_lr[1000].user_attrs["state"] == names.DIVERGED
    pruned = [t for t in trials if t.state.name == "PRUNED"]
    assert pruned and all(list(t.user_attrs["rungs"]) == ["1"] and t.values is None for t in pruned)
    assert trials[0].state.name == "COMPLETE", "the lambda = 0 baseline is trained to the end"
    client = MlflowClient(f"sqlite:///{folder}/results/mlflow.db")
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    runs = {
        r.data.tags[names.TAG_TRIAL]: r
        for r in client.search_runs([experiment.experiment_id])
        if r.data.tags[names.TAG_ROLE] == "trial"
    }
    assert len(runs) == 8
    state_of = {"COMPLETE": names.COMPLETE, "PRUNED": names.STOPPED, "FAIL": names.DIVERGED}
    for trial in trials:
        tags = runs[str(trial.number)].data.tags
        assert tags[names.TAG_STATE] == state_of[trial.state.name]
        if trial.state.name == "PRUNED":
            history = client.get_metric_history(runs[str(trial.number)].info.run_id, metrics.TRAIN_LOSS)
            assert [m.step for m in history] == [1] and tags[names.TAG_STOPPED_AFTER] == "1"


def test_no_point_is_run_twice(folder: Path) -> None:
    points = [(t.params["lr"], t.params["reg_weight"]) for t in stored(folder, "s")]
    assert len(points) == len(set(points))


def test_more_trials_extend_it_by_just_those_and_keep_the_rungs(folder: Path) -> None:
    before = stored(folder, "s")
    result = run(folder, "s.yaml", "--trials", "12")
    assert result.returncode == 0, result.stderr
    trials = stored(folder, "s")
    assert len(trials) == 12 and "RUNNING" not in [t.state.name for t in trials]
    assert [t.datetime_complete for t in trials[:8]] == [t.datetime_complete for t in before]
    rungs = Rungs(("maximize", "maximize"), (1,), reduction=2, noise_tolerance=0)
    for trial in trials:
        if values := trial.user_attrs.get("rungs", {}).get("1"):
            goes_on = rungs.add(trial.number, 1, values, [0.0, 0.0])
            if trial.number >= 8:
                assert (trial.state.name == "PRUNED") == (not goes_on), "not compared with those before the extension"


def test_a_longer_horizon_is_refused_under_the_same_name_and_continued_in_a_fork(folder: Path) -> None:
    (folder / "long.yaml").write_text(SPEC.replace("max_epochs: 3", "max_epochs: 5"))
    refused = run(folder, "long.yaml", "--name", "s")
    assert refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1
    assert "fidelity.max_epochs: 3 there, 5 now" in refused.stderr and "--fork" in refused.stderr
    known = stored(folder, "s")
    survivors = [t for t in known if t.state.name == "COMPLETE"]
    # The fork tries the points that are always tried as well, whoever of them was stopped on this processor.
    total = str(len(survivors) + sum("fixed_params" in t.system_attrs for t in known if t not in survivors))
    forked = run(folder, "long.yaml", "--name", "s", "--fork", "longer", "--trials", total)
    assert forked.returncode == 0, forked.stderr
    assert f"{len(survivors)} of them from their checkpoints" in forked.stdout
    trials = stored(folder, "longer")
    by_point = {tuple(t.params.values()): t for t in trials}
    for old in survivors:
        new = by_point[tuple(old.params.values())]
        first, second = (
            (folder / f"results/{name}/trials/{t.number:04d}/checkpoint.safetensors").stat().st_mtime
            for name, t in (("s", old), ("longer", new))
        )
        assert second >= first
    client = MlflowClient(f"sqlite:///{folder}/results/mlflow.db")
    experiment = client.get_experiment_by_name("longer")
    assert experiment is not None
    for r in client.search_runs([experiment.experiment_id], "tags.`study.state` = 'complete'"):
        steps = [m.step for m in client.get_metric_history(r.info.run_id, metrics.TRAIN_LOSS)]
        assert steps == [1, 2, 3, 4, 5]


def test_an_earlier_studys_results_are_a_warm_start(folder: Path) -> None:
    # A rate at which nothing is learned leaves every map defined, so there is a trial that can be on the front and is
    # repeated; at the other rates most maps may be undefined by the end. Nobody is stopped before that is known.
    spec = SPEC.replace("[0.1, 0.2,", "[0.1, 0.2, 3.0e-6,").replace("{reduction: 2, noise_tolerance: 0}", "null")
    known = "known_points: [{lr: 3.0e-6, reg_weight: 0.1}]"
    lines = [known if line.startswith("known_points") else line for line in spec.splitlines()]
    (folder / "more.yaml").write_text("\n".join(lines))
    complete = [t for t in stored(folder, "s") if t.state.name == "COMPLETE"]
    result = run(folder, "more.yaml", "--warm-start", "s", "--trials", "4", "--replicates", "1")
    assert result.returncode == 0, result.stderr
    assert f"from study s: {len(complete)} results, 0 points to try" in result.stdout
    trials = stored(folder, "more")
    assert len(trials) == 5 and trials[4].user_attrs["seed"] == 1
    done = {(t.params["lr"], t.params["reg_weight"]) for t in complete}
    proposed = {(t.params["lr"], t.params["reg_weight"]) for t in trials[2:4]}  # after the two known points
    assert not proposed & done, "what the earlier study completed was run again"
    unknown = run(folder, "more.yaml", "--warm-start", "nonsense")
    assert unknown.returncode == 2 and len(unknown.stderr.strip().splitlines()) == 1
