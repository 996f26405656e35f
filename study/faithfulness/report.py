"""What an evaluation found: means over images, their errors, and the values behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from study import metrics as names
from study.config import EvaluationConfig
from study.faithfulness import metrics
from study.faithfulness.statistics import image_scores, masking_share, standard_error
from study.saliency import distinct_methods


@dataclass(frozen=True)
class MethodScores:
    """Means over images, in percent; ``undefined`` counts images whose map is constant or not finite.

    ``parts`` are the paper's five metrics of the network as it is and ``mean`` the five in one. ``candidates``: the
    map's agreement and excess by name (``deletion_agreement``, ``masking_excess`` ...).
    """

    parts: dict[str, float]
    undefined: int
    mean: float
    candidates: dict[str, float]


@dataclass(frozen=True)
class FaithfulnessReport:
    """Scores of one network on given images under one protocol.

    ``scores``: ledger name to value of every network-level score, the objective and its standard error over images
    among them; NaN where an output on an image or a masked image is not finite. ``alignment``: mean cos(input gradient,
    guided gradient) in eval mode, 0 for a gradient of zero norm. ``accuracy``: %. ``seconds``: wall clock of the whole
    evaluation. ``methods`` has the stand-ins too. ``per_image``: columns of the values behind every mean; those that
    masking made are as long as ``masking_images``.
    """

    accuracy: float
    alignment: float
    temperature: float
    protocol: str
    images: int
    masking_images: int
    seconds: float
    scores: dict[str, float]
    methods: dict[str, MethodScores]
    distinct: tuple[str, ...]
    per_image: dict[str, NDArray[Any]]

    @property
    def faithfulness(self) -> float:
        return self.scores[names.FAITHFULNESS.ledger_name]

    @property
    def standard_error(self) -> float:
        """Of ``faithfulness``, over images."""
        return self.scores[names.FAITHFULNESS_ERROR]

    def metrics(self) -> dict[str, float]:
        """Everything under its ledger name. A share that is not defined is absent."""
        values = {
            **{name: value for name, value in self.scores.items() if name != names.MASKING_SHARE.ledger_name},
            names.ALIGNMENT.ledger_name: self.alignment,
            names.TEMPERATURE: self.temperature,
            names.IMAGE_SECONDS: self.seconds / self.images,
        }
        share = self.scores[names.MASKING_SHARE.ledger_name]
        if math.isfinite(share):
            values[names.MASKING_SHARE.ledger_name] = share
        for method, scores in self.methods.items():
            values |= {names.saliency_metric(method, part): v for part, v in (scores.parts | scores.candidates).items()}
            values[names.undefined_metric(method)] = float(scores.undefined)
        return values


def report_of(
    columns: Mapping[str, Tensor],
    config: EvaluationConfig,
    *,
    temperature: float,
    stand_ins: Sequence[str],
    seconds: float,
) -> FaithfulnessReport:
    """A report from columns of per-image values; those of the five metrics and of masking may be shorter."""
    per_image = {name: values.cpu().numpy() for name, values in columns.items()}
    means = {name: float(values.mean(dtype=np.float64)) for name, values in per_image.items()}
    methods: dict[str, MethodScores] = {}
    for method in (*config.methods, *stand_ins):
        parts = {part: means[f"{method}/{part}"] for part in names.PARTS}
        total = metrics.combined({part: torch.tensor(value, dtype=torch.float64) for part, value in parts.items()})
        candidates = {name: means[f"{method}/{name}"] for name in names.METHOD_SCORES}
        methods[method] = MethodScores(parts, int(per_image[f"{method}/undefined"].sum()), float(total), candidates)
    of_image = image_scores(per_image)
    found: dict[str, float] = {}
    for metric in names.CANDIDATES:
        if metric is names.MASKING_SHARE:
            found[metric.ledger_name] = masking_share(per_image)
            continue
        found[metric.ledger_name] = float(of_image[metric.name].mean(dtype=np.float64))
        found[metric.error_name] = standard_error(of_image[metric.name])
    found[names.OTHER_EXCESS] = float(of_image["other_excess"].mean(dtype=np.float64))
    found[names.UNDEFINED_SHARE.ledger_name] = float(of_image["undefined"].mean())
    chosen = names.FAITHFULNESS_IS
    found[names.FAITHFULNESS.ledger_name] = found[chosen.ledger_name]
    found[names.FAITHFULNESS_ERROR] = found[chosen.error_name]
    return FaithfulnessReport(
        accuracy=100 * means["correct"],
        alignment=means["alignment"],
        temperature=temperature,
        protocol=names.protocol_identity(config.protocol),
        images=len(per_image["label"]),
        masking_images=len(of_image["masking_excess"]),
        seconds=seconds,
        scores=found,
        methods=methods,
        distinct=distinct_methods(config.methods),
        per_image=per_image,
    )


def write_per_image(file: Path, per_image: Mapping[str, NDArray[Any]]) -> None:
    """As Parquet, one row per image; a column that is shorter ends in nulls."""
    import pyarrow as pa
    from pyarrow import parquet

    n = max(len(values) for values in per_image.values())
    table = {
        name: pa.concat_arrays([pa.array(values), pa.nulls(n - len(values), pa.array(values).type)])
        for name, values in per_image.items()
    }
    parquet.write_table(pa.table(table), file)


def read_per_image(file: Path) -> dict[str, NDArray[Any]]:
    """What :func:`write_per_image` wrote; each column as long as it was."""
    from pyarrow import parquet

    table = parquet.read_table(file, memory_map=False)
    return {name: table[name].drop_null().to_numpy() for name in table.column_names}
