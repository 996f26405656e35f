"""Checkpoints and exports that a stranger sends: nothing is executed, one line, exit 2, whatever the command."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis import verify
from study import evaluate, names, train
from study.command import EXIT_BAD_INPUT, run_command
from study.training import checkpoint as checkpoint_module
from tests.payload import Payload

pytestmark = pytest.mark.slow

TRAIN = ["--network", "tiny", "--epochs", "2", "--batch-size", "32", "--train-images", "64",
         "--validation-images", "20", "--evaluation-images", "10", "--methods", "grad_cam"]  # fmt: skip


def torch_file(payload: object) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": payload}, stream)
    return stream.getvalue()


def numpy_file(payload: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([payload], dtype=object), allow_pickle=True)
    return stream.getvalue()


def zip_file(payload: object) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload))
    return stream.getvalue()


def promising(size: int) -> bytes:
    """A safetensors file of one tensor that says it has ``size`` numbers, and has one."""
    header = json.dumps({"head.weight": {"dtype": "F32", "shape": [size, 1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"1234"


WEIGHTS: dict[str, Callable[[Payload], bytes]] = {
    "pickle": pickle.dumps,
    "torch": torch_file,
    "numpy": numpy_file,
    "zip": zip_file,
    "pickle behind a header": lambda payload: struct.pack("<Q", 2) + b"{}" + pickle.dumps(payload),
    "a header without end": lambda payload: struct.pack("<Q", 1 << 62) + pickle.dumps(payload),
    "a tensor without end": lambda payload: promising(1 << 40),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as study.train leaves it, with the checkpoint of its first epoch."""
    folder = tmp_path_factory.mktemp("trained") / "network"
    assert train.main([*TRAIN, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def received(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to tamper with, in an empty working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / "received"
    folder.mkdir()
    for file in trained.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    return Payload(tmp_path / "executed")


def refused(main: Callable, arguments: list[str], capsys: pytest.CaptureFixture[str], payload: Payload | None) -> str:
    capsys.readouterr()
    assert run_command(main, arguments) == EXIT_BAD_INPUT
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ") and line.isprintable() and not printed.out
    assert payload is None or not payload.trace.exists()
    return line


def evaluation(folder: Path, *more: str) -> list[str]:
    return [str(folder), "--images", "5", "--gallery", "", "--methods", "grad_cam", *more]


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_code_are_never_executed(
    kind: str, received: Path, payload: Payload, capsys: pytest.CaptureFixture[str]
) -> None:
    content = WEIGHTS[kind](payload)
    (received / names.MODEL_FILE).write_bytes(content)
    card = json.loads((received / names.MODEL_CONFIG_FILE).read_text())
    card["sha256"] = hashlib.sha256(content).hexdigest()
    (received / names.MODEL_CONFIG_FILE).write_text(json.dumps(card))
    assert names.MODEL_FILE in refused(evaluate.main, evaluation(received), capsys, payload)

    (received / names.CHECKPOINT_FILE).write_bytes(content)
    line = refused(train.main, [*TRAIN, "--out", str(received)], capsys, payload)
    assert f"{names.CHECKPOINT_FILE}: damaged, or not a checkpoint" in line


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_lone_file_is_no_network(
    kind: str, payload: Payload, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(WEIGHTS[kind](payload))
    assert "weights.pt" in refused(evaluate.main, evaluation(file), capsys, payload)
    assert "holds no export" in refused(verify.main, [str(file)], capsys, payload)
    torch.load(io.BytesIO(torch_file(payload)), weights_only=False)  # the payload works
    assert payload.trace.exists()


CARDS: dict[str, Callable[[dict], object]] = {
    "a network that is a module": lambda card: {**card, "network": "os:system"},
    "a network that is a list": lambda card: {**card, "network": ["tiny"]},
    "very many classes": lambda card: {**card, "n_classes": 10**12},
    "no configuration": lambda card: {**card, "config": None},
    "an unknown parameter": lambda card: {**card, "config": {**card["config"], "run": "ls"}},
    "an unknown parameter of the data": lambda card: {**card, "config": {**card["config"], "data": {"run": "ls"}}},
    "images behind a NUL": lambda card: {**card, "config": {**card["config"], "data": {"source": "a\0b"}}},
    "images behind an escape": lambda card: {**card, "config": {**card["config"], "data": {"source": "\x1b[2J"}}},
    "a fingerprint that is a number": lambda card: {**card, "data_fingerprint": 7},
    "a hash that is a list": lambda card: {**card, "sha256": []},
    "a list": lambda card: [card],
}


@pytest.mark.parametrize("kind", CARDS)
def test_a_card_that_lies_is_refused(kind: str, received: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = json.loads((received / names.MODEL_CONFIG_FILE).read_text())
    (received / names.MODEL_CONFIG_FILE).write_text(json.dumps(CARDS[kind](card)))
    start = time.monotonic()
    refused(evaluate.main, evaluation(received), capsys, None)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\x00", ""])
def test_a_card_that_is_a_bomb_is_refused(text: str, received: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (received / names.MODEL_CONFIG_FILE).write_text(text)
    assert "not the description of a saved model" in refused(evaluate.main, evaluation(received), capsys, None)
    (received / "manifest.json").write_text(text)
    assert "not the manifest of an export" in refused(verify.main, [str(received)], capsys, None)


@pytest.mark.parametrize("study", ["../outside", "/tmp", "..", "\x1b[2J", 7, ["x"]])
def test_a_card_cannot_send_the_book_of_looks_elsewhere(
    study: object, received: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The look at the test split is noted in the folder of the study that the card names: inside the results only."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "results").mkdir()
    card = json.loads((received / names.MODEL_CONFIG_FILE).read_text())
    (received / names.MODEL_CONFIG_FILE).write_text(json.dumps({**card, "study": study, "run_id": "1" * 32}))
    options = ["--split", "test", "--storage", str(tmp_path / "results")]
    if study == 7:  # as good a name as any: of a study that is not here
        assert run_command(evaluate.main, evaluation(received, *options)) == 0
    else:
        assert "study" in refused(evaluate.main, evaluation(received, *options), capsys, None)
    assert not list(tmp_path.rglob(names.TEST_LOG_FILE))


HEADERS: dict[str, object] = {
    "nothing": {},
    "a list": ["x"],
    "another program's": {"config": {"lr": 1}, "data_fingerprint": "x", "history": []},
    "no history": {"history": []},
    "a history of words": {"history": [{"epoch": 1, "val/accuracy": "high"}]},
    "a history of numbers": {"history": [1]},
    "epochs that are left out": {"history": [{"epoch": 2}]},
    "data of lists": {"data_fingerprint": ["x"]},
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_checkpoint_that_lies_is_not_continued(kind: str, received: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever writes a checkpoint can write its checksum too."""
    file = received / names.CHECKPOINT_FILE
    true = checkpoint_module.load_checkpoint(file)
    tensors = {f"model/{k}": v for k, v in true.model.items()} | {f"momentum/{k}": v for k, v in true.momentum.items()}
    lie = HEADERS[kind]
    header = {**true.header, **lie} if isinstance(lie, dict) and lie else lie
    file.write_bytes(checkpoint_module._serialize(tensors, header))  # type: ignore[arg-type]
    before = file.read_bytes()
    assert names.CHECKPOINT_FILE in refused(train.main, [*TRAIN, "--out", str(received)], capsys, None)
    assert file.read_bytes() == before


def test_a_manifest_leads_nowhere_and_a_pipe_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("/etc/hostname", "../x", "a/../../x", "\x1b[2J"):
        manifest = {"format": "study-export/2", "study": "x", "files": {name: {"sha256": "0", "bytes": 1}}}
        (out / "manifest.json").write_text(json.dumps(manifest))
        refused(verify.main, [str(out)], capsys, None)
    os.mkfifo(out / "pipe")
    manifest = {"format": "study-export/2", "study": "x", "files": {"pipe": {"sha256": "0", "bytes": 0}}}
    (out / "manifest.json").write_text(json.dumps(manifest))
    watch = threading.Timer(20, os._exit, [9])  # reading the pipe would wait for ever
    watch.start()
    assert "not a plain file" in refused(verify.main, [str(out)], capsys, None)
    watch.cancel()
