"""A storage that fills up while a study runs: a clear stop, and nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from study import names
from tests.e2e.books import check_books, check_undisturbed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system"),
]
ROOT = Path(__file__).parents[2]
SPEC = """
objectives: {accuracy: maximize, faithfulness: maximize}
space: {lr: {float: [0.02, 0.5], log: true}}
fixed: {network: tiny, batch_size: 64}
fidelity: {max_epochs: 4}
# Long enough that the look at the storage, every 5 s, comes before the end on any machine.
data: {source: shapes, train_images: 4000, validation_images: 100}
evaluation: {images: 50}
budget: {trials: 3}
"""
# The small file system is this script's own: it ends with it.
SCRIPT = """
mkdir results; mount -t tmpfs -o size=160m none results
{python} -m study.run s.yaml > first.log 2>&1 & study=$!
until ls results/s/trials/*/checkpoint.safetensors > /dev/null 2>&1; do sleep 0.1; done
fallocate -l $(( $(df --output=avail -B1 results | tail -1) - {left} )) results/filler
wait $study; echo first $?
rm results/filler
{python} -m study.run s.yaml > second.log 2>&1; echo second $?
{python} -m analysis.load s > load.log 2>&1; tail -5 load.log
ls results/s/trials
cp -r results kept
"""


@pytest.mark.parametrize("left", [20 * 2**20, 4096], ids=["little is left", "nothing is left"])
def test_a_full_storage_stops_the_study_and_the_same_command_continues_it(tmp_path: Path, left: int) -> None:
    (tmp_path / "s.yaml").write_text(SPEC)
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", SCRIPT.format(python=sys.executable, left=left)], cwd=tmp_path, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    first, second = ((tmp_path / name).read_text() for name in ("first.log", "second.log"))
    assert "first 2" in done.stdout, first + done.stderr
    (line,) = [line for line in first.splitlines() if line.startswith("error:")]
    assert "free some space and type the same command" in line and "Traceback" not in first
    assert "second 0" in done.stdout, second
    assert "were interrupted and go on" in second and "front (" in second
    assert " failed" not in second
    assert done.stdout.split()[-3:] == ["0000", "0001", "0002"]
    client, folder = MlflowClient(f"sqlite:///{tmp_path / 'kept/mlflow.db'}"), tmp_path / "kept/s"

    def files_of(run: Any) -> set[str]:
        place = run.info.artifact_uri.removeprefix((tmp_path / "results").as_uri()).lstrip("/")
        return {file.name for file in (tmp_path / "kept" / place / names.CHECKPOINT_ARTIFACTS).iterdir()}

    check_books(client, folder, trials=3, epochs=4, files_of=files_of)
    check_undisturbed(client, folder, tmp_path / "peace", trials=3)
