"""The command under real accidents: killed, without a test split, with artifacts that are not what they were."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from made_studies import MakeStudy
from PIL import Image
from pyarrow import parquet

from analysis.export import main
from analysis.export.manifest import verify
from study import names
from study.command import EXIT_BAD_INPUT, run_command
from study.config import DataConfig, EvaluationConfig, TrialConfig
from study.ledger import Ledger
from study.storage.test_log import openings
from study.trial.trial import Trial

ROOT = Path(__file__).parents[3]
QUICK = ["--formats", "safetensors"]


def write_split(folder: Path, split: str) -> None:
    """40 images of noise in the schema of the public data set."""
    rows = []
    for pixels in np.random.default_rng(7).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": None})
    labels = [i % 4 for i in range(len(rows))]
    folder.mkdir(exist_ok=True)
    table = pa.table({"img": rows, "fine_label": labels, "coarse_label": labels})
    parquet.write_table(table, folder / f"{split}-00000.parquet")


@pytest.mark.slow
def test_the_test_split_is_missing_then_damaged_then_there(
    make_study: MakeStudy, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "images", "train")
    config = TrialConfig(
        network="tiny", epochs=1, lr=0.05, data=DataConfig(source=str(tmp_path / "images")),
        evaluation=EvaluationConfig(methods=("grad_cam",), images=500),
    )  # fmt: skip
    trial = Trial(config, tmp_path / "trial", device=torch.device("cpu"))
    trial.step()
    files = trial.export(tmp_path / "trial")
    scores = {**trial.history[-1], "val/faithfulness": 1.0}
    make_study([(names.COMPLETE, config.to_dict(), scores, files)])
    book, out = storage / "demo" / names.TEST_LOG_FILE, tmp_path / "out"
    command = ["demo", "--out", str(out), "--storage", str(storage), *QUICK]

    assert run_command(main, command) == EXIT_BAD_INPUT
    assert "has no test*.parquet" in capsys.readouterr().err
    assert not book.exists() and not out.exists()

    (tmp_path / "images" / "test-00000.parquet").write_bytes(b"not a parquet file")
    assert run_command(main, command) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert "test-00000.parquet" in error.splitlines()[-1]
    assert len(openings(book)) == 1 and not out.exists()

    write_split(tmp_path / "images", "test")
    assert run_command(main, command) == 0
    entry = verify(out)["networks"][0]
    assert entry["test_scores"]["accuracy_images"] == entry["test_scores"]["faithfulness_images"] == 40
    assert entry["parity"]["images"] == entry["validation_images"] == 4
    assert len(openings(book)) == entry["test_scores"]["looks_in_study"] == 2


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b"[]", b"null", b'{"network": "tiny"}', b"{" * 100_000])
@pytest.mark.parametrize("name", [names.MODEL_CONFIG_FILE, names.MODEL_FILE])
def test_artifacts_of_nonsense_are_one_line(
    content: bytes, name: str, study: Ledger, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = storage.glob(f"demo/artifacts/*/artifacts/checkpoint/{name}")
    file.write_bytes(content)
    assert run_command(main, ["demo", "--out", str(tmp_path / "out"), "--storage", str(storage)]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: trial 0: ") and name in error and error.count("\n") == 1 and ".part" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


def test_a_missing_artifact_is_named(
    study: Ledger, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(storage / "demo" / "artifacts")
    assert run_command(main, ["demo", "--out", str(tmp_path / "out"), "--storage", str(storage)]) == EXIT_BAD_INPUT
    assert "artifact checkpoint/model.safetensors" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_a_killed_command_leaves_the_old_folder_or_none(
    kills: int, study: Ledger, storage: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["demo", "--out", str(out), "--storage", str(storage), *QUICK]
    assert main(command) == 0
    old: dict | None = verify(out)
    chance = random.Random(0)
    for i in range(kills):
        if i % 2:  # a first export: there is nothing to leave
            shutil.rmtree(out)
            old = None
        process = subprocess.Popen(
            [sys.executable, "-m", "analysis.export", *command],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not (tmp_path / ".out.part").exists():
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 8) if kills > 1 else 1)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            ended = process.wait()
        found = verify(out) if out.exists() else None
        if found != old:  # the kill came too late: a whole new one
            assert found is not None and (old is None or found["exported"] > old["exported"])
        else:
            assert ended == -signal.SIGKILL
        if found is None:
            assert main(command) == 0
        old = verify(out)
    assert main(command) == 0
    verify(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "results"]
