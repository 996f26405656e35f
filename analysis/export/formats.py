"""A network as files. Every file but the safetensors carries its preprocessing and needs no code of this project.

Shapes: N images of H × W pixels, C = 3 channels (RGB), K classes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import names
from study.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

SAFETENSORS, TORCH_EXPORT, ONNX = "safetensors", "torch_export", "onnx"
#: Format -> its file.
FILES = {SAFETENSORS: names.MODEL_FILE, TORCH_EXPORT: "model.pt2", ONNX: "model.onnx"}
FORMATS = tuple(FILES)
INPUT, OUTPUT = "images", "logits"
_BATCH_AXIS = "batch"


def parse_formats(text: str) -> tuple[str, ...]:
    """``a,b`` in the order of :data:`FORMATS`. Raises :class:`InputError` for an unknown one, or none."""
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        raise InputError(f"--formats {text}: {unknown[0] if unknown else 'none'}; choose from {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in wanted)


def write_formats(network: nn.Module, card: Mapping[str, Any], folder: Path, formats: tuple[str, ...]) -> None:
    """Complete ``folder``, which holds the safetensors file already, to exactly the files of ``formats``.

    ``network`` is in eval mode on the CPU. Raises OSError where the folder cannot be written.
    """
    if SAFETENSORS not in formats:
        (folder / FILES[SAFETENSORS]).unlink()
    if TORCH_EXPORT in formats or ONNX in formats:
        program = captured(network, card)
        note = describe(card)
        if TORCH_EXPORT in formats:
            (folder / FILES[TORCH_EXPORT]).write_bytes(program_bytes(program, note))
        if ONNX in formats:
            (folder / FILES[ONNX]).write_bytes(onnx_bytes(program, note))


def describe(card: Mapping[str, Any]) -> dict[str, str]:
    """What travels inside the files, as texts: input, output, the classes by index (JSON), where it is from."""
    return {
        "input": f"{INPUT}: uint8 (N, 32, 32, 3), RGB, 0 to 255, not normalised",
        "output": f"{OUTPUT}: float32 (N, {card['n_classes']}), before softmax",
        "classes": json.dumps(card["classes"]),
        "network": str(card["network"]),
        "weights_sha256": str(card["sha256"]),
    }


def captured(network: nn.Module, card: Mapping[str, Any]) -> torch.export.ExportedProgram:
    """From pixels as image files hold them, uint8 (N, 32, 32, 3) RGB, to logits (N, K) for any N, as one graph."""
    import torch

    module = from_pixels(network, card["mean"], card["std"])
    images_NHWC = torch.zeros((2, 32, 32, 3), dtype=torch.uint8)  # a batch of one would be taken for a constant
    batch = torch.export.Dim(_BATCH_AXIS, min=1)
    return torch.export.export(module, (images_NHWC,), dynamic_shapes={INPUT: {0: batch}})


def from_pixels(network: nn.Module, mean: list[float], std: list[float]) -> nn.Module:
    """The network behind its normalisation; the arithmetic is that of ``study.data.augment.normalize``."""
    import torch
    from torch import Tensor, nn

    class FromPixels(nn.Module):
        shift: Tensor
        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("shift", 255 * torch.tensor(mean).view(1, -1, 1, 1))
            self.register_buffer("scale", 255 * torch.tensor(std).view(1, -1, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            return self.network((images.permute(0, 3, 1, 2).float() - self.shift) / self.scale)

    return FromPixels().eval().requires_grad_(False)


def program_bytes(program: torch.export.ExportedProgram, note: Mapping[str, str]) -> bytes:
    """As ``torch.export.load`` reads it; ``note`` under ``card.json``."""
    import torch

    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"card.json": json.dumps(note)})
    return buffer.getvalue()


def onnx_bytes(program: torch.export.ExportedProgram, note: Mapping[str, str]) -> bytes:
    """One self-contained ONNX file; ``note`` as metadata. Its first axis is named ``batch`` and may have any length."""
    import torch

    with _quiet():
        made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
    assert made is not None
    proto = made.model_proto
    anonymous = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == anonymous:
                dim.dim_param = _BATCH_AXIS
    for key, value in note.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its progress and its plans; a user can do nothing about either."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
