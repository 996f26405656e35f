"""Every bad input through the command line: exit code 2, one line on stderr, no traceback, nothing left behind."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "tests" / "spec" / "example.yaml").read_text()
UNUSED_PORT = 9  # the discard service: nothing listens there


def command(*arguments: str, cwd: Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "STUDY_CACHE": str(cwd / "cache")},
    )  # fmt: skip


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for part in parts:
        assert part in lines[0], lines[0]


SPEC_ERRORS = {
    "unknown key": ("seed: 0", "sed: 0", ["spec.yaml:24", "sed"]),
    "wrong type": ("trials: 8", "trials: many", ["budget.trials", "'many'"]),
    "bounds reversed": ("[0.02, 0.5]", "[0.5, 0.02]", ["space.lr", "reversed"]),
    "log scale with 0": ("[5.0e-3, 1]", "[0, 10]", ["space.reg_weight", "log scale"]),
    "condition on an unknown parameter": ("reg_weight > 0", "reg_wt > 0", ["space.reg_error", "'reg_wt'"]),
    "unknown network": ("[tiny, small]", "[tiny, smal]", ["space.network", "'smal'"]),
    "unknown error function": ("[cosine, mse]", "[cosine, hinge]", ["space.reg_error", "'hinge'"]),
    "unknown objective": ("accuracy: maximize", "acuracy: maximize", ["objectives", "'acuracy'"]),
}


@pytest.mark.parametrize(("old", "new", "parts"), SPEC_ERRORS.values(), ids=list(SPEC_ERRORS))
def test_refused_specification(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    (tmp_path / "spec.yaml").write_text(EXAMPLE.replace(old, new))
    result = command("study.run", "spec.yaml", cwd=tmp_path)
    assert_refused(result, *parts)
    assert [p.name for p in tmp_path.iterdir()] == ["spec.yaml"]


def test_help_and_refusal_answer_within_a_second(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(EXAMPLE.replace("seed: 0", "sed: 0"))
    for arguments in (("--help",), ("spec.yaml",)):
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            command("study.run", *arguments, cwd=tmp_path)
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 1, seconds  # the best of three: the machine may be busy with other tests
    imported = command("study.run", "spec.yaml", cwd=tmp_path, prefix=("env", "PYTHONPROFILEIMPORTTIME=1")).stderr
    for heavy in ("torch", "ray", "mlflow", "optuna"):
        assert f"| {heavy}\n" not in imported


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--network", "resnet9000"], ["network", "'resnet9000'", "resnet18"]),
        (["--reg-weight", "1", "--reg-error", "hinge"], ["reg_error", "'hinge'", "cosine"]),
        (["--lr", "0"], ["lr", "out of range"]),
        (["--lr", "nan"], ["lr", "finite"]),
        (["--epochs", "0"], ["epochs", "out of range"]),
        (["--reg-weight", "-1"], ["reg_weight", "out of range"]),
        (["--methods", "gradcam"], ["evaluation.methods", "'gradcam'"]),
        (["--data", "nowhere"], ["nowhere"]),
    ],
)
def test_refused_training(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    result = command("study.train", *arguments, "--out", "out", cwd=tmp_path)
    assert_refused(result, *parts)
    assert not list(tmp_path.glob("out/*"))


def png(side: int = 32) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_parquet(folder: Path, **columns: pa.Array) -> Path:
    folder.mkdir()
    images = [{"bytes": png(), "path": None}] * 200
    labels = [i % 100 for i in range(200)]
    base = {"img": pa.array(images), "fine_label": pa.array(labels), "coarse_label": pa.array([i % 20 for i in labels])}
    columns = {k: v for k, v in {**base, **columns}.items() if v is not None}
    for split in ("train", "test"):
        parquet.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


def refused_data(tmp_path: Path, *parts: str) -> None:
    (tmp_path / "spec.yaml").write_text(EXAMPLE)
    assert_refused(command("study.run", "spec.yaml", "--data", "images", cwd=tmp_path), *parts)
    assert not list(tmp_path.glob("results/*"))
    leftovers = list((tmp_path / "cache").rglob("*.npy"))
    assert not leftovers, leftovers


def test_missing_folder(tmp_path: Path) -> None:
    refused_data(tmp_path, "images")


def test_folder_without_parquet(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    refused_data(tmp_path, "images")


def test_truncated_parquet(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "images")
    file = folder / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    refused_data(tmp_path, file.name)


def test_parquet_without_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images", fine_label=None)
    refused_data(tmp_path, "train-00000-of-00001.parquet", "fine_label")


def test_labels_out_of_range(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images", fine_label=pa.array([100] * 200))
    refused_data(tmp_path, "train-00000-of-00001.parquet", "100")


def test_images_of_another_size(tmp_path: Path) -> None:
    write_parquet(tmp_path / "images", img=pa.array([{"bytes": png(28), "path": None}] * 200))
    refused_data(tmp_path, "train-00000-of-00001.parquet", "28")


def test_pickle_in_an_archive_is_not_executed(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps({b"data": Attack()}))
    refused_data(tmp_path, "images")
    assert not (tmp_path / "executed").exists()


def test_results_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(EXAMPLE)
    (tmp_path / "taken").write_text("")
    result = command("study.run", "spec.yaml", "--storage", "taken", cwd=tmp_path)
    assert_refused(result, "taken", "--storage")


@pytest.mark.system
@pytest.mark.parametrize(("options", "word"), [("ro", "Read-only"), ("size=256k", "free")])
def test_read_only_and_full_results_folder(tmp_path: Path, options: str, word: str) -> None:
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare for a file system of its own")
    (tmp_path / "spec.yaml").write_text(EXAMPLE)
    (tmp_path / "disk").mkdir()
    mount = f'mount -t tmpfs -o {options} none disk && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", mount, "sh")
    assert_refused(command("study.run", "spec.yaml", "--storage", "disk", cwd=tmp_path, prefix=prefix), "disk", word)


@pytest.mark.slow
def test_unreachable_servers(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(EXAMPLE)
    server = f"http://127.0.0.1:{UNUSED_PORT}"
    assert_refused(command("study.run", "spec.yaml", "--tracking-uri", server, cwd=tmp_path), server)
    address = f"127.0.0.1:{UNUSED_PORT}"
    assert_refused(command("study.run", "spec.yaml", "--address", address, cwd=tmp_path), address, "ray up")
    assert_refused(command("study.run", "spec.yaml", "--address", "nonsense", cwd=tmp_path), "HOST:PORT")
    assert_refused(command("study.run", "spec.yaml", "--name", "../up", cwd=tmp_path), "--name")
    assert_refused(command("study.run", "spec.yaml", "--time-budget", "soon", cwd=tmp_path), "--time-budget", "30m")
    assert not list(tmp_path.glob("results/*/*"))


@pytest.mark.slow
def test_more_gpus_than_the_cluster_has(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(EXAMPLE.replace("gpus: 0", "gpus: 60"))
    assert_refused(command("study.run", "spec.yaml", cwd=tmp_path), "resources.gpus", "60 GPUs", "--address")
    assert not list(tmp_path.glob("results/spec"))


@pytest.mark.slow
def test_an_interrupted_cache_write_is_made_good(tmp_path: Path) -> None:
    arguments = ("study.train", "--epochs", "1", "--train-images", "50", "--validation-images", "20",
                 "--evaluation-images", "10", "--out", "out")  # fmt: skip
    assert command(*arguments, cwd=tmp_path).returncode == 0
    scores = (tmp_path / "out" / "result.json").read_text()
    for file in (tmp_path / "cache").rglob("images.npy"):
        file.write_bytes(file.read_bytes()[:1000])
    shutil.rmtree(tmp_path / "out")
    again = command(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    different = ("seconds",)  # wall-clock times are no part of the result
    lines = zip(scores.splitlines(), (tmp_path / "out" / "result.json").read_text().splitlines(), strict=True)
    assert all(a == b or any(word in a for word in different) for a, b in lines)
