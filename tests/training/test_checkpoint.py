from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from study.config import TrialConfig
from study.errors import ArtifactError, StorageError, StudyError
from study.names import CHECKPOINT_FILE, MODEL_CONFIG_FILE, MODEL_FILE
from study.networks import build
from study.training.checkpoint import load_checkpoint, load_model, restore, save_checkpoint, save_model
from study.training.loop import make_optimizer

CONFIG = TrialConfig(network="tiny", epochs=2, lr=0.1)
HEADER: dict[str, Any] = {"config": CONFIG.to_dict(), "history": [{"epoch": 1, "val/accuracy": 33.25}], "n_classes": 10}


def new() -> tuple[nn.Module, torch.optim.SGD]:
    network = build("tiny", 10)
    optimizer = make_optimizer(network, CONFIG)
    for state in optimizer.state.values():
        nn.init.normal_(state["momentum_buffer"])
    return network, optimizer


def saved(folder: Path) -> tuple[Path, nn.Module, torch.optim.SGD]:
    network, optimizer = new()
    path = folder / CHECKPOINT_FILE
    save_checkpoint(path, network, optimizer, HEADER)
    return path, network, optimizer


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path, network, optimizer = saved(tmp_path)
    twin, other = new()
    checkpoint = load_checkpoint(path)
    restore(checkpoint, twin, other)
    assert checkpoint.header == HEADER
    assert TrialConfig.from_dict(checkpoint.header["config"]) == CONFIG
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[key])
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(optimizer.state[a]["momentum_buffer"], other.state[b]["momentum_buffer"])
    assert os.listdir(tmp_path) == [CHECKPOINT_FILE]


def test_channels_last_is_kept_where_it_is_restored(tmp_path: Path) -> None:
    network = build("tiny", 10).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, CONFIG)
    save_checkpoint(tmp_path / "c", network, optimizer, HEADER)
    restore(load_checkpoint(tmp_path / "c"), network, optimizer)
    weight = network.blocks[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert optimizer.state[weight]["momentum_buffer"].is_contiguous(memory_format=torch.channels_last)


def test_weights_alone_can_be_restored(tmp_path: Path) -> None:
    path, network, _ = saved(tmp_path)
    twin = build("tiny", 10)
    restore(load_checkpoint(path), twin)
    assert torch.equal(network.head.weight, twin.head.weight)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 1000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path, _, _ = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=CHECKPOINT_FILE):
        load_checkpoint(path)


@pytest.mark.parametrize("where", [0, 3, 9, 50, 0.2, 0.5, 0.9, -1])
def test_a_flipped_bit_is_refused(tmp_path: Path, where: float) -> None:
    path, _, _ = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[int(where * len(content)) if isinstance(where, float) else where] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=CHECKPOINT_FILE):
        load_checkpoint(path)


def test_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing.safetensors.*No such file"):
        load_checkpoint(tmp_path / "nothing.safetensors")
    with pytest.raises(StorageError, match="cannot be read"):
        load_checkpoint(tmp_path)
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    with pytest.raises(ArtifactError, match="a.pt"):
        load_checkpoint(tmp_path / "a.pt")
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "b.safetensors")
    with pytest.raises(ArtifactError, match="not a checkpoint of this program"):
        load_checkpoint(tmp_path / "b.safetensors")
    safetensors.torch.save_file(
        {"a": torch.ones(3)}, tmp_path / "c.safetensors", {"format": "study-checkpoint", "version": "99"}
    )
    with pytest.raises(ArtifactError, match="version 99; this program reads 1"):
        load_checkpoint(tmp_path / "c.safetensors")


def test_a_checkpoint_of_another_network_changes_nothing(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path)
    checkpoint = load_checkpoint(path)
    for other, message in ((build("small", 10), "tensor"), (build("tiny", 5), r"tensor head.* shape \(10")):
        before = {k: v.clone() for k, v in other.state_dict().items()}
        with pytest.raises(ArtifactError, match=message):
            restore(checkpoint, other, make_optimizer(other, CONFIG))
        assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path, network, optimizer = saved(tmp_path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "write":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        import signal

        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the kernel itself refuses midway
    else:
        monkeypatch.setattr(os, failing, fail)
    try:
        with pytest.raises(StorageError, match=rf"{CHECKPOINT_FILE}: cannot be written: (No space|File too large)"):
            save_checkpoint(path, network, optimizer, {"epoch": 2})
    finally:
        if failing == "write":
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [CHECKPOINT_FILE]
    save_checkpoint(path, network, optimizer, {"epoch": 2})
    assert load_checkpoint(path).header == {"epoch": 2}


def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, network, optimizer = saved(tmp_path)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, network, optimizer, {})
    assert os.listdir(tmp_path) == [CHECKPOINT_FILE]
    assert load_checkpoint(path).header == HEADER


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    network, optimizer = new()
    with pytest.raises(StorageError, match="gone/c.safetensors"):
        save_checkpoint(tmp_path / "gone" / "c.safetensors", network, optimizer, {})


def test_model_round_trip(tmp_path: Path) -> None:
    network = build("tiny", 10).eval()
    save_model(tmp_path / "new" / "model", network, {"network": "tiny", "n_classes": 10, "note": "x"})
    assert sorted(os.listdir(tmp_path / "new" / "model")) == sorted((MODEL_FILE, MODEL_CONFIG_FILE))
    state = torch.get_rng_state()
    loaded, card = load_model(tmp_path / "new" / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert card["note"] == "x" and not loaded.training
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), network(x))


def test_weights_that_the_card_does_not_describe_are_refused(tmp_path: Path) -> None:
    card = {"network": "tiny", "n_classes": 10}
    save_model(tmp_path / "a", build("tiny", 10), card)
    save_model(tmp_path / "b", build("tiny", 10), card)
    (tmp_path / "b" / MODEL_FILE).write_bytes((tmp_path / "a" / MODEL_FILE).read_bytes())
    with pytest.raises(ArtifactError, match=f"{MODEL_FILE}: damaged, or not the weights"):
        load_model(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{", ArtifactError, "not the description"),
        ("[]", ArtifactError, "not the description"),
        (json.dumps({"network": "tiny"}), ArtifactError, "n_classes"),
        (None, StorageError, "cannot be read"),
    ],
)
def test_a_bad_card_is_refused(tmp_path: Path, text: str | None, kind: type[StudyError], message: str) -> None:
    save_model(tmp_path, build("tiny", 10), {"network": "tiny", "n_classes": 10})
    if text is None:
        (tmp_path / MODEL_CONFIG_FILE).unlink()
    else:
        (tmp_path / MODEL_CONFIG_FILE).write_text(text)
    with pytest.raises(kind, match=rf"{MODEL_CONFIG_FILE}.*{message}"):
        load_model(tmp_path)


def test_a_card_of_another_network_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, build("tiny", 10), {"network": "small", "n_classes": 10})
    with pytest.raises(ArtifactError, match=rf"{MODEL_FILE}: (missing|unexpected) tensor|{MODEL_FILE}: tensor"):
        load_model(tmp_path)
