"""A session told to end does so in order; a checkpoint that a stranger put in its place is not continued from."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from study import names
from study.command import EXIT_INTERRUPTED
from tests.payload import Payload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
SPEC = """
objectives: {accuracy: maximize, faithfulness: maximize}
space: {lr: {float: [0.02, 0.5], log: true}}
fixed: {network: tiny, batch_size: 64, reg_weight: 0}
fidelity: {max_epochs: 3}
data: {source: shapes, train_images: 600, validation_images: 100}
evaluation: {images: 20}
budget: {trials: 3, retries: 1}
resources: {cpus: 2}
"""


def test_a_terminated_session_ends_in_order_and_a_strangers_checkpoint_fails_its_trial(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(SPEC)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STUDY_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "study.run", "t.yaml"]
    checkpoint = tmp_path / "results/t/trials/0000" / names.CHECKPOINT_FILE
    with (tmp_path / "first.log").open("wb") as log:
        first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        while not checkpoint.exists():
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.05)
        first.terminate()
        first.wait(60)
    finally:
        first.kill()
        first.wait()
    said = (tmp_path / "first.log").read_text()
    assert first.returncode == EXIT_INTERRUPTED and "trials are left: type the same command" in said, said
    assert "SIGTERM" not in said and "Traceback" not in said, said

    trace = tmp_path / "executed"
    checkpoint.write_bytes(pickle.dumps(Payload(trace)))
    again = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert again.returncode == 0, again.stderr
    assert not trace.exists(), "the stranger's checkpoint was executed"
    client = MlflowClient(f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("t")
    runs = client.search_runs([experiment.experiment_id], f"tags.`{names.TAG_ROLE}` = 'trial'")
    states = {run.data.tags[names.TAG_TRIAL]: run.data.tags[names.TAG_STATE] for run in runs}
    assert states == {"0": names.FAILED, "1": names.COMPLETE, "2": names.COMPLETE}
    (failed,) = (run for run in runs if run.data.tags[names.TAG_TRIAL] == "0")
    assert names.CHECKPOINT_FILE in failed.data.tags[names.TAG_REASON], failed.data.tags
