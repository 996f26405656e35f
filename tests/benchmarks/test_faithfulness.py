"""The benchmark of the evaluator runs and says what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faithfulness import TABLE, Case
from study.config import EvaluationConfig
from study.faithfulness import evaluate_faithfulness

ROOT = Path(__file__).parents[2]
KEYS = {
    "gradient_cams_vs_pytorch_grad_cam", "gradient_cams_vs_torchcam", "score_cam_vs_bound",
    "ablation_cam_vs_pytorch_grad_cam", "score_cam_vs_torchcam", "score_cam_vs_pytorch_grad_cam", "table_vs_peers",
}  # fmt: skip


@pytest.mark.slow
def test_it_ends_with_one_line_of_ratios() -> None:
    command = [sys.executable, "-m", "benchmarks.faithfulness", "--networks", "tiny", "--rounds", "3"]
    command += ["--train-seconds", "1", "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ratios = json.loads(done.stdout.splitlines()[-1])
    assert ratios.keys() == {"tiny"} and ratios["tiny"].keys() == KEYS
    assert all(ratio > 0 for ratio in ratios["tiny"].values())
    assert "channels show something" in done.stdout
    agreements = [line for line in done.stdout.splitlines() if "score_cam " in line]
    assert len(agreements) == 2  # with torchcam and with pytorch-grad-cam
    controls = [line.split(",")[0] for line in done.stdout.splitlines() if line.startswith("control: ")]
    assert controls == ["control: agreements", "control: masking excess"]


def test_our_table_is_the_evaluators() -> None:
    """The same five metrics as a whole evaluation gives, without its controls."""
    case = Case("tiny", 0.0)
    config = EvaluationConfig(methods=TABLE, images=None, batch_size=4)
    report = evaluate_faithfulness(case.network, case.images[:4], config, temperature=1.5)
    table = case.our_table(4)
    wanted = {f"{method}/{part}": v for method in TABLE for part, v in report.methods[method].parts.items()}
    assert table == pytest.approx(wanted, rel=1e-4, abs=1e-4)
