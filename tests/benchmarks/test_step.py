"""The benchmarks run, and say what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import check, step

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_step_ends_with_one_line_of_ratios() -> None:
    command = [sys.executable, "-m", "benchmarks.step", "--networks", "tiny", "--batch-size", "4", "--rounds", "2"]
    done = subprocess.run([*command, "--threads", "1"], cwd=ROOT, capture_output=True, text=True, check=True)
    ratios = json.loads(done.stdout.splitlines()[-1])
    assert ratios.keys() == {"tiny"} and ratios["tiny"].keys() == set(step.REPORTED)
    assert all(ratio > 1 for ratio in ratios["tiny"].values())
    row = next(line for line in done.stdout.splitlines() if line.startswith("ours "))
    assert row.rstrip().endswith("%") and row.count("x") == 1  # memory and fraction of the peak are there


@pytest.mark.slow
def test_check_passes_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--device", "cpu", "--networks", "tiny"]) == 0
    assert "all passed" in capsys.readouterr().out


def test_check_fails_where_a_number_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        check, "CHECKS", (lambda name, device: [("wrong", 2.0, 1.0), ("no number", float("nan"), 1.0)],)
    )
    assert check.main(["--device", "cpu", "--networks", "tiny"]) == 1
    assert "2 failed" in capsys.readouterr().out


def test_a_gpu_host_needs_torch_alone() -> None:
    """Neither the tuning stack nor the ledger is there; importing any of it would raise."""
    absent = ("ray", "optuna", "mlflow", "pydantic", "pytest")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({absent}))"
    code = f"{blocked}; import benchmarks.check, benchmarks.step, study.train"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
