"""Every file is loaded again in a fresh process and must give the logits of the network that was measured."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.export.formats import FILES, ONNX, SAFETENSORS, TORCH_EXPORT
from study.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np

    from analysis.export.fetch import Proven

#: Format -> largest |logit difference| from the network in this process, both on the CPU in float32.
TOLERANCES = {SAFETENSORS: 0.0, TORCH_EXPORT: 1e-4, ONNX: 1e-4}
CHECK_IMAGES = 64  # real ones, of the validation split
_TIMEOUT = 1800  # seconds for all files of one format


def check_parity(proven: Sequence[Proven], formats: Sequence[str]) -> list[dict[str, Any]]:
    """Per network ``{format: {"max_logit_difference": …}, "images": …}``, images also one at a time.

    One process per format loads the files of all networks. Raises :class:`ArtifactError` where a file cannot be loaded
    there, or its logits differ by more than :data:`TOLERANCES`.
    """
    import numpy as np

    batches = [np.ascontiguousarray(_images(p).transpose(0, 2, 3, 1)) for p in proven]
    wanted = [_logits(p) for p in proven]
    found: list[dict[str, Any]] = [{"images": len(batch)} for batch in batches]
    for kind in formats:
        answers = reload([p.folder / FILES[kind] for p in proven], kind, batches)
        for p, expected, answer, entry in zip(proven, wanted, answers, found, strict=True):
            difference = max(largest_difference(a, b) for a, b in zip(answer, expected, strict=True))
            if not difference <= TOLERANCES[kind]:
                raise ArtifactError(
                    f"{p.folder.name}: {FILES[kind]}, loaded in a fresh process, gives logits that differ by "
                    f"{difference:.2g}, more than {TOLERANCES[kind]:g}; nothing was exported; leave {kind} out of "
                    "--formats, or report this"
                )
            entry[kind] = {"max_logit_difference": difference}
    return found


def reload(
    files: Sequence[Path], kind: str, batches: Sequence[np.ndarray[Any, Any]]
) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Logits of every file on its images (N, H, W, C) uint8, and on the first image alone, from a fresh process.

    Raises :class:`ArtifactError` where the process ends without them.
    """
    import numpy as np
    import torch

    packed = io.BytesIO()
    arrays: dict[str, Any] = {f"{i}": batch for i, batch in enumerate(batches)}
    np.savez(packed, **arrays)
    script = Path(__file__).with_name("fresh.py")
    arguments = [str(Path(__file__).parents[2])] if kind == SAFETENSORS else []
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "STUDY_EXPORT_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-P", str(script), kind, *arguments, *map(str, files)]
    try:
        result = subprocess.run(
            command, input=packed.getvalue(), capture_output=True, env=environment, timeout=_TIMEOUT, check=False
        )
        if result.returncode:
            raise ValueError((result.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1])
        answers = np.load(io.BytesIO(result.stdout), allow_pickle=False)
        return [(answers[f"{i}"], answers[f"{i}/one"]) for i in range(len(files))]
    except (ValueError, OSError, KeyError, subprocess.TimeoutExpired) as error:
        raise ArtifactError(
            f"{kind}: a fresh process cannot load {', '.join(f'{f.parent.name}/{f.name}' for f in files)} "
            f"({str(error)[:300]}); nothing was exported"
        ) from None


def largest_difference(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Largest |difference|; inf for other shapes or anything that is not finite."""
    import numpy as np

    if one.shape != other.shape or not np.isfinite(one).all() or not np.isfinite(other).all():
        return float("inf")
    return float(np.abs(one.astype(np.float64) - other).max())


def _images(proven: Proven) -> np.ndarray[Any, Any]:
    return proven.dataset.validation.images[:CHECK_IMAGES]


def _logits(proven: Proven) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of this process's network: the batch's, and the first image's alone."""
    import torch

    from study.data.augment import normalize

    x_NCHW = normalize(torch.tensor(_images(proven)), proven.card["mean"], proven.card["std"])
    with torch.no_grad():
        return proven.network(x_NCHW).numpy(), proven.network(x_NCHW[:1]).numpy()
