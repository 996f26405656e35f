"""Scores of named networks: made with a progress bar, and written as files."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from study import metrics
from study.config import EvaluationConfig
from study.data.labelled import LabelledImages
from study.evaluation.networks import NamedNetwork
from study.faithfulness import FaithfulnessReport, evaluate_faithfulness
from study.faithfulness.calibration import at_temperature
from study.faithfulness.report import write_per_image
from study.faithfulness.stand_ins import stand_in_maps
from study.networks.folding import folded
from study.networks.state import device_of
from study.saliency import saliency_maps


def score(
    network: NamedNetwork, other: NamedNetwork | None, images: LabelledImages, config: EvaluationConfig
) -> FaithfulnessReport:
    """Score a network and stand-ins for its maps, the maps of ``other`` among them."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        maps = progress.add_task(f"maps that stand in for those of {network.title}", total=len(images))
        stand_ins = stand_in_maps(
            network.network,
            images,
            config,
            temperature=network.temperature,
            other=None if other is None else at_temperature(other.network, other.temperature),
            on_images=lambda done, of: progress.update(maps, completed=done, total=of),
        )
        task = progress.add_task(f"scoring {network.title}", total=len(images))
        return evaluate_faithfulness(
            network.network,
            images,
            config,
            temperature=network.temperature,
            stand_ins=stand_ins,
            on_images=lambda done, of: progress.update(task, completed=done, total=of),
        )


def milliseconds_per_image(network: nn.Module, images: LabelledImages, methods: Sequence[str]) -> dict[str, float]:
    """Wall clock of making each method's maps."""
    images, inference = images.to(device_of(network)), folded(network)
    x_NCHW, spent = images.normalized(), {}
    for method in methods:
        seconds = []
        for _ in range(3):  # the first call prepares what later ones share
            start = time.perf_counter()
            saliency_maps(network, x_NCHW, images.labels_N, [method], inference=inference).logits.cpu()
            seconds.append(time.perf_counter() - start)
        spent[method] = 1000 * min(seconds) / len(images)
    return spent


def write(out: Path, split: str, networks: Sequence[NamedNetwork], reports: Sequence[FaithfulnessReport]) -> None:
    """Per-image scores as Parquet, everything else as JSON, in which null is a number that is not finite."""
    document = []
    for i, (network, report) in enumerate(zip(networks, reports, strict=True)):
        write_per_image(out / f"per_image_{i}.parquet", report.per_image)
        document.append(
            {
                "network": network.name,
                "config": network.card["config"],
                "split": split,
                "protocol": report.protocol,
                "images": report.images,
                "masking_images": report.masking_images,
                "temperature": report.temperature,
                "accuracy": report.accuracy,
                "faithfulness": report.faithfulness,
                "faithfulness_is": metrics.FAITHFULNESS_IS.name,
                "standard_error": report.standard_error,
                "candidates": {m.name: report.scores[m.ledger_name] for m in metrics.CANDIDATES},
                "scores": report.scores,
                "alignment": report.alignment,
                "seconds": report.seconds,
                "methods": {m: dataclasses.asdict(s) for m, s in report.methods.items()},
            }
        )
    (out / "evaluation.json").write_text(json.dumps(_finite(document), indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
