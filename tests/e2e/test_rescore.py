"""A study whose scores are of another protocol, through the commands: refused, scored again, continued."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient

from study import metrics, names

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

SPEC = """
objectives: {accuracy: maximize, faithfulness: maximize}
space: {lr: {float: [0.05, 0.2]}}
fixed: {network: tiny, batch_size: 50}
fidelity: {max_epochs: 1}
data: {source: shapes, train_images: 100, validation_images: 40}
evaluation: {images: 12}
budget: {trials: 2}
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STUDY_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip


def values(folder: Path) -> list[list[float]]:
    storage = f"sqlite:///{folder}/results/k/{names.OPTUNA_FILE}"
    return [t.values for t in optuna.load_study(study_name="k", storage=storage).trials]


def test_a_study_of_another_protocol_is_scored_again_and_continued(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(SPEC)
    first = run(tmp_path, "study.run", "k.yaml")
    assert first.returncode == 0, first.stderr
    before = values(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/results/{names.LEDGER_FILE}")
    experiment = client.get_experiment_by_name("k")
    assert experiment is not None
    trials = client.search_runs([experiment.experiment_id], f"tags.`{names.TAG_ROLE}` = 'trial'")
    for trial in trials:
        assert trial.data.tags[names.TAG_PROTOCOL] == metrics.protocol_identity("paper")
        client.set_tag(trial.info.run_id, names.TAG_PROTOCOL, "paper/1")

    refused = run(tmp_path, "study.run", "k.yaml", "--trials", "3")
    assert refused.returncode == 2, refused.stderr
    (line,) = refused.stderr.strip().splitlines()
    assert "was scored under paper/1" in line and "`python -m study.rescore k`" in line
    assert values(tmp_path) == before

    again = run(tmp_path, "study.rescore", "k")
    assert again.returncode == 0, again.stderr
    assert "2 trials are scored under paper/2 now, under paper/1 before" in again.stdout
    for new, old in zip(values(tmp_path), before, strict=True):
        assert new == pytest.approx(old, rel=1e-4), "the same networks under the same protocol"

    continued = run(tmp_path, "study.run", "k.yaml", "--trials", "3")
    assert continued.returncode == 0, continued.stderr
    assert "continuing: 2 trials are finished" in continued.stdout and len(values(tmp_path)) == 3
