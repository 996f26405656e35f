"""Run by its path, in a process of its own: load exported files and give back their logits.

For ONNX neither this project nor torch can be imported here, for a ``torch.export`` program not this project: what
loads here loads where only onnxruntime or torch are installed. Arguments: format, then files; for safetensors the
project's root first. stdin: .npz with an array of images per file, named by its number; stdout: .npz with the logits
of the batch under the same name, and of its first image alone under ``NUMBER/one``.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORBIDDEN = {"onnx": ("study", "analysis", "torch"), "torch_export": ("study", "analysis", "torchvision")}
Run = Callable[[Any], Any]


def main() -> None:
    kind, *files = sys.argv[1:]
    answers_to = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    for module in FORBIDDEN.get(kind, ()):
        sys.modules[module] = None  # type: ignore[assignment]  # importing it raises ImportError
    import numpy as np

    images = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    if kind == "safetensors":
        sys.path.insert(0, files.pop(0))
    answers = {}
    for i, file in enumerate(files):
        run = {"onnx": onnx, "torch_export": torch_export, "safetensors": safetensors}[kind](file)
        answers[f"{i}"] = run(images[f"{i}"])
        answers[f"{i}/one"] = run(images[f"{i}"][:1])
    packed = io.BytesIO()
    np.savez(packed, **answers)
    with os.fdopen(answers_to, "wb") as out:
        out.write(packed.getvalue())


def onnx(file: str) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def torch_export(file: str) -> Run:
    import torch

    module = torch.export.load(file).module()
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def safetensors(file: str) -> Run:
    import torch

    from study.data.augment import normalize
    from study.training.checkpoint import load_model

    torch.set_num_threads(int(os.environ["STUDY_EXPORT_THREADS"]))  # sums in the same order as where they are compared
    network, card = load_model(Path(file).parent)

    def run(images: Any) -> Any:
        with torch.no_grad():
            x_NCHW = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
            return network(normalize(x_NCHW, card["mean"], card["std"])).numpy()

    return run


if __name__ == "__main__":
    main()
