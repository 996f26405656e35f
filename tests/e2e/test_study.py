"""A whole study through the commands of the README: run, kill, continue, front, export. Everything is real."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient

from study import metrics, names
from tests.e2e.browser import require_chromium, text_of

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

SPEC = """
objectives: {accuracy: maximize, faithfulness: maximize}
space:
  network: {choice: [tiny]}
  lr: {float: [0.02, 0.5], log: true}
  reg_weight: {float: [1.0e-3, 10], log: true, zero: true}
  reg_error: {choice: [cosine, mse], when: reg_weight > 0}
fixed: {batch_size: 64, warmup_epochs: 0.5}
fidelity: {max_epochs: 4}
data: {source: shapes, train_images: 600, validation_images: 100}
evaluation: {images: 50}
budget: {trials: 6}
"""


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "STUDY_CACHE": str(folder / "cache")}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment(folder), capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip


def optuna_states(folder: Path) -> dict[int, str]:
    """Read without Optuna, so that a half-made database is no obstacle."""
    try:
        with sqlite3.connect(f"file:{folder}/results/k/optuna.db?mode=ro", uri=True, timeout=5) as db:
            return dict(db.execute("select number, state from trials").fetchall())
    except sqlite3.Error:
        return {}


def ledger_runs(folder: Path) -> dict[str, object]:
    client = MlflowClient(f"sqlite:///{folder / 'results' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("k")
    assert experiment is not None
    everything = client.search_runs([experiment.experiment_id])
    assert len([r for r in everything if r.data.tags[names.TAG_ROLE] == "study"]) == 1
    runs = [r for r in everything if r.data.tags[names.TAG_ROLE] == "trial"]
    by_key = {r.data.tags[names.TAG_KEY]: r for r in runs}
    assert len(by_key) == len(runs), "one run per trial"
    return dict(by_key)


def workers(driver: int) -> list[int]:
    """Process ids of the trial workers that descend from ``driver``."""

    def parent(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return 0

    def is_worker(pid: int) -> bool:
        try:
            return b"Trainable" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [pid for pid in pids if is_worker(pid) and driver in (parent(pid), parent(parent(pid)))]


def wait_for(condition: Callable[[], object], driver: subprocess.Popen[Any], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, "the study ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def killed_study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Start a study, kill -9 a worker, then the driver after two trials are over, and type the same command again."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "k.yaml").write_text(SPEC)
    with (folder / "first.log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "study.run", "k.yaml"], cwd=folder, env=environment(folder), stdout=log, stderr=log
        )
    try:
        wait_for(lambda: (folder / "results/k/trials/0000/checkpoint.safetensors").exists(), driver)
        os.kill(workers(driver.pid)[0], signal.SIGKILL)  # its trial is retried from its checkpoint
        wait_for(lambda: sum(state == "COMPLETE" for state in optuna_states(folder).values()) >= 2, driver)
    finally:
        driver.kill()
        driver.wait()
    before = optuna_states(folder)
    # The ledger hears first that a trial is over: one that Optuna had not heard of yet is told, and ended, once more.
    told = {f"k/{number}/0" for number, state in before.items() if state == "COMPLETE"}
    ended = {k: r.info.end_time for k, r in ledger_runs(folder).items() if k in told}  # type: ignore[attr-defined]
    again = run(folder, "study.run", "k.yaml", "--system-metrics")
    return {"folder": folder, "before": before, "ended": ended, "again": again}


def test_the_same_command_continues(killed_study: dict[str, object]) -> None:
    again = killed_study["again"]
    assert isinstance(again, subprocess.CompletedProcess)
    assert again.returncode == 0, again.stderr
    before = killed_study["before"]
    assert isinstance(before, dict)
    assert "RUNNING" in before.values(), "the kill came between two trials: it tests nothing"
    assert "were interrupted and go on" in again.stdout
    assert "next     python -m analysis.pareto k" in again.stderr


def test_a_worker_that_died_is_told_in_a_line(killed_study: dict[str, object]) -> None:
    folder = killed_study["folder"]
    assert isinstance(folder, Path)
    said = (folder / "first.log").read_text()
    assert said.count("running  (crashed, it goes on from its checkpoint)") == 1
    assert "raylet" not in said and "Traceback" not in said, said


def test_no_trial_is_lost_or_doubled(killed_study: dict[str, object]) -> None:
    folder, before = killed_study["folder"], killed_study["before"]
    assert isinstance(folder, Path) and isinstance(before, dict)
    trials = optuna.load_study(study_name="k", storage=f"sqlite:///{folder}/results/k/optuna.db").trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 6
    runs = ledger_runs(folder)
    assert sorted(runs) == [f"k/{n}/0" for n in range(6)]
    for key, end in killed_study["ended"].items():  # type: ignore[attr-defined]
        assert runs[key].info.end_time == end, f"{key} was finished and has been run again"  # type: ignore[attr-defined]
    client = MlflowClient(f"sqlite:///{folder / 'results' / 'mlflow.db'}")
    sampled: set[str] = set()
    attempts = 0
    for trial, run_ in zip(trials, (runs[f"k/{n}/0"] for n in range(6)), strict=True):
        assert run_.data.tags[names.TAG_STATE] == names.COMPLETE  # type: ignore[attr-defined]
        history = client.get_metric_history(run_.info.run_id, metrics.TRAIN_LOSS)  # type: ignore[attr-defined]
        assert [m.step for m in history] == [1, 2, 3, 4]
        (log,) = client.list_artifacts(run_.info.run_id, names.LOG_ARTIFACTS)  # type: ignore[attr-defined]
        assert log.path == f"{names.LOG_ARTIFACTS}/{names.TRIAL_LOG}"
        text = Path(run_.data.tags[names.TAG_LOG]).read_text()  # type: ignore[attr-defined]
        assert log.file_size == len(text.encode()) and "epoch 4/4" in text
        attempts += text.count("attempt on CPU")
        final = run_.data.metrics  # type: ignore[attr-defined]
        if any(name.startswith(metrics.SYSTEM_METRICS) for name in final):
            sampled.add(f"k/{trial.number}/0")
        assert trial.values == [final[metrics.ACCURACY.ledger_name], final[metrics.FAITHFULNESS.ledger_name]]
    assert attempts > 6, "the killed worker's trial has two"
    assert sampled and not sampled & set(killed_study["ended"]), "only the second command asked for system metrics"  # type: ignore[call-overload]


def test_finished_means_finished(killed_study: dict[str, object]) -> None:
    folder = killed_study["folder"]
    assert isinstance(folder, Path)
    third = run(folder, "study.run", "k.yaml")
    assert third.returncode == 0 and "continuing: 6 trials are finished" in third.stdout
    assert len(optuna_states(folder)) == 6


def test_another_specification_under_the_same_name_is_refused(killed_study: dict[str, object]) -> None:
    folder = killed_study["folder"]
    assert isinstance(folder, Path)
    (folder / "other.yaml").write_text(SPEC.replace("[0.02, 0.5]", "[0.02, 0.9]"))
    result = run(folder, "study.run", "other.yaml", "--name", "k")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "space.lr.float" in result.stderr and "--name" in result.stderr


def test_pareto_and_export(killed_study: dict[str, object]) -> None:
    folder = killed_study["folder"]
    assert isinstance(folder, Path)
    pareto = run(folder, "analysis.pareto", "k", "--json")
    assert pareto.returncode == 0, pareto.stderr
    front = json.loads(pareto.stdout.strip().splitlines()[-1])
    assert front["trials"] == 6 and front["front"] and front["hypervolume"] >= 0
    export = run(folder, "analysis.export", "k", "--out", "shipped")
    assert export.returncode == 0, export.stderr
    folders = sorted((folder / "shipped").glob("trial-*"))
    assert len(folders) == len(front["front"])
    for shipped in folders:
        assert (shipped / names.MODEL_FILE).stat().st_size > 0
        card = json.loads((shipped / names.MODEL_CONFIG_FILE).read_text())
        assert card["data_fingerprint"] and card["protocol"].startswith("paper/")
    unknown = run(folder, "analysis.pareto", "nonsense")
    assert unknown.returncode == 2 and len(unknown.stderr.strip().splitlines()) == 1


@pytest.mark.system
def test_the_pages_of_mlflow_show_trials_scores_and_artifacts(killed_study: dict[str, object]) -> None:
    """What a person sees who types the command and follows its links, without any set-up."""
    require_chromium()
    folder = killed_study["folder"]
    assert isinstance(folder, Path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "study.ui", "--port", str(port)]
    pages = subprocess.Popen(
        command, cwd=folder, env=environment(folder), text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert pages.stdout is not None
        links = [line.split()[-1] for line in itertools.islice(pages.stdout, 4) if "http" in line]
        assert len(links) == 2, "the study's trials, its front and curves"
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), pages)
        table, charts = (text_of(link, folder) for link in links)
        runs = ledger_runs(folder)
        for run_ in runs.values():
            assert run_.info.run_name in table and run_.info.run_name in charts  # type: ignore[attr-defined]
            assert str(run_.data.metrics[metrics.FAITHFULNESS.ledger_name])[:8] in table  # type: ignore[attr-defined]
        for column in ("val/accuracy", "val/faithfulness", "study.state", "reg_weight", "lr", "6 matching runs"):
            assert column in table
        for chart in ("front (2)", "val/accuracy vs. val/faithfulness", "Parallel Coordinates", "train ("):
            assert chart in charts
        trial = runs["k/0/0"].info  # type: ignore[attr-defined]
        place = f"http://127.0.0.1:{port}/#/experiments/{trial.experiment_id}/runs/{trial.run_id}"
        about = text_of(place, folder)
        assert "Trial 0: tiny, plain cross-entropy" in about and "study k" in about
        files = text_of(f"{place}/artifacts/{names.CHECKPOINT_ARTIFACTS}", folder)
        assert all(name in files for name in (names.MODEL_FILE, names.MODEL_CONFIG_FILE, names.PER_IMAGE_FILE))
    finally:
        os.killpg(pages.pid, signal.SIGKILL)
        pages.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


def test_train_alone_continues_after_a_kill(tmp_path: Path) -> None:
    arguments = ["study.train", "--network", "tiny", "--reg-weight", "0.1", "--epochs", "3", "--train-images", "400",
                 "--validation-images", "100", "--evaluation-images", "50"]  # fmt: skip
    whole = run(tmp_path, *arguments, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, "--out", "killed"], cwd=tmp_path, env=environment(tmp_path),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoint = tmp_path / "killed" / names.CHECKPOINT_FILE
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    again = run(tmp_path, *arguments, "--out", "killed")
    assert again.returncode == 0 and "continuing after epoch" in again.stderr
    weights = [(tmp_path / name / names.MODEL_FILE).read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1], "resumed differs from uninterrupted"
    other = run(tmp_path, *arguments, "--lr", "0.3", "--out", "killed")
    assert other.returncode == 2 and "lr" in other.stderr
