"""What is saved of a training: one file to resume from, and the model alone for those who use it.

Both are safetensors: reading them runs no code. docs/decisions/0004-checkpoint-format.md says why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from study.errors import ArtifactError, StorageError
from study.names import MODEL_CONFIG_FILE, MODEL_FILE
from study.networks import build
from study.storage.atomic import write_atomically

FORMAT = "study-checkpoint"
VERSION = 1
_MODEL, _MOMENTUM = "model/", "momentum/"
_HEAD = "head.weight"  # of every network: a linear layer with one output per class


@dataclass(frozen=True)
class Checkpoint:
    """A training between two epochs: the header that was saved, and weights and momentum by name, on the CPU."""

    path: Path
    header: dict[str, Any]
    model: dict[str, Tensor]
    momentum: dict[str, Tensor]


def save_checkpoint(path: Path, network: nn.Module, optimizer: torch.optim.SGD, header: dict[str, Any]) -> None:
    """Replace ``path`` atomically by one file with weights, buffers, momentum and ``header`` (plain JSON types).

    Raises :class:`StorageError` naming the path where it cannot be written; the old file stays.
    """
    tensors = {_MODEL + name: tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[_MOMENTUM + name] = momentum
    write_atomically(path, _serialize(tensors, header))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote.

    Raises :class:`StorageError` for a file that is missing or cannot be read, :class:`ArtifactError` for one that is
    truncated, damaged or not a checkpoint.
    """
    header, tensors = _deserialize(path)
    model = {name.removeprefix(_MODEL): t for name, t in tensors.items() if name.startswith(_MODEL)}
    momentum = {name.removeprefix(_MOMENTUM): t for name, t in tensors.items() if name.startswith(_MOMENTUM)}
    return Checkpoint(path, header, model, momentum)


def restore(checkpoint: Checkpoint, network: nn.Module, optimizer: torch.optim.SGD | None = None) -> None:
    """Copy a checkpoint's tensors into a network and its optimizer, in place and exactly.

    Raises :class:`ArtifactError` naming the file and a tensor where names or shapes do not fit; nothing is changed
    then.
    """
    _check_fit(checkpoint.path, checkpoint.model, network.state_dict())
    parameters = dict(network.named_parameters())
    if optimizer is not None:
        buffers = {
            name: optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in parameters.items()
            if "momentum_buffer" in optimizer.state.get(parameter, {})
        }
        _check_fit(checkpoint.path, checkpoint.momentum, buffers)
        for name, buffer in buffers.items():
            buffer.copy_(checkpoint.momentum[name])
    network.load_state_dict(checkpoint.model)


def save_model(folder: Path, network: nn.Module, card: dict[str, Any]) -> None:
    """Write the network alone: ``model.safetensors`` and ``model.json``, the card with the weights' SHA-256.

    ``card`` holds at least ``network`` (a name of ``study.config.NETWORKS``) and ``n_classes``. The folder is made.
    Each file is replaced atomically, the card last. Loading refuses weights of one saving beside the card of another.

    Raises :class:`StorageError` where the folder cannot be written.
    """
    missing = [key for key in ("network", "n_classes") if key not in card]
    if missing:
        raise ValueError(f"the card has no {missing[0]}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot be made: {error.strerror or error}", file=folder) from error
    content = safetensors.torch.save(_portable(network.state_dict()))
    text = json.dumps({**card, "sha256": hashlib.sha256(content).hexdigest()}, indent=2) + "\n"
    write_atomically(folder / MODEL_FILE, content)
    write_atomically(folder / MODEL_CONFIG_FILE, text.encode())


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in eval mode on the CPU, and its card, from a folder that :func:`save_model` wrote.

    torch's global random state is left as it was. Raises :class:`StorageError` for a file that is missing or cannot be
    read, :class:`ArtifactError` for one that is damaged or does not belong to the other.
    """
    card_path, weights_path = folder / MODEL_CONFIG_FILE, folder / MODEL_FILE
    try:
        card = json.loads(_read(card_path))
        name, n_classes, digest = str(card["network"]), card["n_classes"], card["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"not the description of a saved model: {error}", file=card_path) from error
    content = _read(weights_path)
    if hashlib.sha256(content).hexdigest() != digest:
        what = f"damaged, or not the weights that {MODEL_CONFIG_FILE} beside it describes"
        raise ArtifactError(what, file=weights_path)
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:  # safetensors raises its own type and others, by version
        raise ArtifactError(f"not a safetensors file: {error}", file=weights_path) from error
    outputs = len(tensors[_HEAD]) if _HEAD in tensors and tensors[_HEAD].ndim else 0
    if n_classes != outputs:  # checked first: a wrong number would make a network of any size
        raise ArtifactError(f"n_classes is {n_classes!r}, and {MODEL_FILE} has {outputs} outputs", file=card_path)
    with torch.random.fork_rng([]):
        network = build(name, n_classes)
    _check_fit(weights_path, tensors, network.state_dict())
    network.load_state_dict(tensors)
    return network.eval(), card


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, in the plain memory order that the file format asks for."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _serialize(tensors: Mapping[str, Tensor], header: dict[str, Any]) -> bytes:
    portable = _portable(tensors)
    text = json.dumps(header)
    metadata = {"format": FORMAT, "version": str(VERSION), "header": text, "sha256": _digest(portable, text)}
    return safetensors.torch.save(portable, metadata)


def _deserialize(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _check_readable(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise StorageError(f"cannot be read: {error}", file=path) from error
    except Exception as error:  # safetensors raises its own type and others, by version
        raise ArtifactError(f"damaged, or not a checkpoint: {error}", file=path) from error
    if metadata.get("format") != FORMAT:
        raise ArtifactError("not a checkpoint of this program", file=path)
    if metadata.get("version") != str(VERSION):
        raise ArtifactError(f"checkpoint version {metadata.get('version')}; this program reads {VERSION}", file=path)
    text = metadata.get("header", "")
    if metadata.get("sha256") != _digest(tensors, text):
        raise ArtifactError("damaged: its content does not match its checksum", file=path)
    try:
        return dict(json.loads(text)), tensors
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"not a checkpoint of this program: {error}", file=path) from None


def _digest(tensors: Mapping[str, Tensor], header: str) -> str:
    """SHA-256 (hex) over the header and every tensor's name, shape and bytes: the format itself has no checksum."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", file=path) from error


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", file=path) from error


def _check_fit(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises :class:`ArtifactError` unless names and shapes are the same."""
    for name in sorted(set(found) ^ set(wanted)):
        raise ArtifactError(f"{'unexpected' if name in found else 'missing'} tensor {name}", file=path)
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ArtifactError(
                f"tensor {name} has shape {tuple(tensor.shape)}, the network wants {tuple(wanted[name].shape)}",
                file=path,
            )
