"""``python -m study.evaluate`` on networks that ``study.train`` wrote: table, differences, files, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from study import metrics, names
from study.command import EXIT_CLOSED_PIPE
from study.faithfulness.protocols import PROTOCOLS
from tests.e2e.test_study import environment, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TRAIN = ["study.train", "--network", "tiny", "--epochs", "2", "--train-images", "400", "--validation-images", "100",
         "--evaluation-images", "20"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    for name, weight in (("plain", "0"), ("regularized", "0.5")):
        done = run(folder, *TRAIN, "--reg-weight", weight, "--out", name)
        assert done.returncode == 0, done.stderr
    return folder


def test_two_networks(folder: Path) -> None:
    done = run(folder, "study.evaluate", "regularized", "plain", "--images", "40", "--methods", "grad_cam,xgrad_cam",
               "--gallery", "0,3", "--sanity", "--out", "found")  # fmt: skip
    assert done.returncode == 0, done.stderr
    protocol = PROTOCOLS["paper"].identity
    for said in (f"val split, 40 images, protocol {protocol}", "regularized: accuracy", "plain: accuracy",
                 "same map as another row", "regularized minus plain, paired over 40 images", "centre", "energy ↑",
                 "rank correlation with its own maps", "the other network's grad_cam", "not measurable",
                 metrics.FAITHFULNESS_IS.name.replace("_", " ")):  # fmt: skip
        assert said in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())
    assert "scoring regularized" in done.stderr and "gallery.png" in done.stderr.splitlines()[-1]
    out = folder / "found"
    assert (out / "gallery.png").read_bytes().startswith(b"\x89PNG")
    first, second = json.loads((out / "evaluation.json").read_text())
    assert first["network"] == "regularized" and second["config"]["reg_weight"] == 0
    table = parquet.read_table(out / "per_image_0.parquet")
    assert table.num_rows == 40
    mean = sum(table["grad_cam/average_drop"].to_pylist()) / 40
    assert mean == pytest.approx(first["methods"]["grad_cam"]["parts"]["average_drop"])
    card = json.loads((folder / "regularized" / names.MODEL_CONFIG_FILE).read_text())
    assert first["temperature"] == card["temperature"] and second["temperature"] != first["temperature"]
    assert first["candidates"].keys() == {m.name for m in metrics.CANDIDATES}
    assert first["scores"][metrics.FAITHFULNESS.ledger_name] == first["faithfulness"]
    assert {"inverse_grad_cam", "other_network"} <= first["methods"].keys()
    assert sum(table["other_network/deletion_agreement"].to_pylist()) / 40 == pytest.approx(
        first["methods"]["other_network"]["candidates"]["deletion_agreement"]
    )
    assert (out / "table.txt").read_text() in done.stdout


def test_a_closed_pipe_costs_no_file(folder: Path) -> None:
    """As with ``| head``: what was measured is written before it is printed."""
    reading, writing = os.pipe()
    os.close(reading)
    command = ["study.evaluate", "plain", "--images", "10", "--methods", "grad_cam", "--gallery", "0", "--out", "piped"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment(folder), stdout=writing, stderr=subprocess.PIPE,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == EXIT_CLOSED_PIPE and "Traceback" not in done.stderr, done.stderr
    written = {file.name for file in (folder / "piped").iterdir()}
    assert written >= {"table.txt", "evaluation.json", "per_image_0.parquet", "gallery.png"}


def test_a_card_without_temperature_gets_one_and_no_scored_image_helps(folder: Path) -> None:
    old = folder / "old"
    old.mkdir()
    (old / names.MODEL_FILE).write_bytes((folder / "plain" / names.MODEL_FILE).read_bytes())
    card = json.loads((folder / "plain" / names.MODEL_CONFIG_FILE).read_text())
    (old / names.MODEL_CONFIG_FILE).write_text(json.dumps({**card, "temperature": None}))
    done = run(folder, "study.evaluate", "old", "--images", "20", "--masking-images", "8", "--methods", "grad_cam",
               "--gallery", "", "--out", "without")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "20 images, 8 of them masked" in done.stdout and "other network" not in done.stdout
    (found,) = json.loads((folder / "without" / "evaluation.json").read_text())
    assert found["temperature"] == pytest.approx(card["temperature"], rel=1e-4), "fitted to the same images"
    table = parquet.read_table(folder / "without" / "per_image_0.parquet")
    assert table["grad_cam/masking_excess"].null_count == 12 and table["grad_cam/deletion_agreement"].null_count == 0


def test_the_test_split_is_announced_and_smoothgrad_compared(folder: Path) -> None:
    done = run(folder, "study.evaluate", "plain", "--split", "test", "--images", "10", "--methods", "grad_cam",
               "--gallery", "", "--compare-smoothgrad", "--out", "test")  # fmt: skip
    assert "SmoothGrad minus the plain input gradient" in done.stdout
    assert done.returncode == 0, done.stderr
    assert "scoring on the test split; choose nothing" in done.stderr and "test split, 10 images" in done.stdout
    assert not (folder / "test/gallery.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere/model.json"),
        (["plain", "--methods", "x_ray"], "unknown value 'x_ray'"),
        (["plain", "--protocol", "mine"], "unknown value 'mine'"),
        (["plain", "--split", "train"], "choose val or test"),
        (["plain", "--images", "0"], "images"),
        (["plain", "--masking-images", "1"], "masking_images"),
        (["plain", "--gallery", "one"], "--gallery"),
        (["plain", "--gallery", "100000"], "the split has images 0 to"),
        (["plain", "plain", "plain"], "two are compared"),
        (["no-study/3"], "there is none"),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: list[str], said: str) -> None:
    done = run(folder, "study.evaluate", *arguments, "--out", "refused")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and said in done.stderr
    assert not (folder / "refused" / "table.txt").exists()


def test_a_tampered_network_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in (names.MODEL_FILE, names.MODEL_CONFIG_FILE):
        (tmp_path / name).write_bytes((folder / "plain" / name).read_bytes())
    weights = bytearray((tmp_path / names.MODEL_FILE).read_bytes())
    weights[-1] ^= 1
    (tmp_path / names.MODEL_FILE).write_bytes(weights)
    done = run(folder, "study.evaluate", str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
