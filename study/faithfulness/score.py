"""The evaluator: how much a network's maps say about its decisions, beyond what wrong maps say.

docs/decisions/0005 says what is compared with what, and why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from study import metrics as names
from study.config import EvaluationConfig
from study.data import Dataset
from study.data.labelled import LabelledImages
from study.faithfulness.calibration import temperature_of
from study.faithfulness.controls import EXCESSES, agreements, masking_excess
from study.faithfulness.first_pass import first_pass
from study.faithfulness.report import FaithfulnessReport, report_of
from study.faithfulness.scored_network import ScoredNetwork
from study.saliency import same_maps


def score_network(
    network: nn.Module,
    dataset: Dataset,
    config: EvaluationConfig,
    on_images: Callable[[int, int], None] | None = None,
) -> FaithfulnessReport:
    """Score a network on validation images, at the temperature fitted to those that are reserved for it."""
    temperature = temperature_of(network, dataset, config.calibration_images)
    scored = LabelledImages.of(dataset, dataset.scored(config.images, config.calibration_images))
    return evaluate_faithfulness(network, scored, config, temperature=temperature, on_images=on_images)


def evaluate_faithfulness(
    network: nn.Module,
    images: LabelledImages,
    config: EvaluationConfig,
    *,
    temperature: float,
    stand_ins: Mapping[str, Tensor] | None = None,
    on_images: Callable[[int, int], None] | None = None,
) -> FaithfulnessReport:
    """Score ``network`` on all ``images``, on the network's device. Images with masks add localization.

    ``temperature`` is the network's calibrated one (:func:`study.faithfulness.calibration.temperature_of`); the paper's
    five metrics are those of the network as it is. ``stand_ins``: maps (n, h, w) by name that are scored as if they
    were a method's, beside the methods. ``on_images(done, of)`` follows the progress. What is drawn for an image
    depends on its number and ``config.random_seed`` alone, so the batch size changes nothing. The network's modes and
    its parameters' ``.grad`` stay as they were.

    Raises :class:`study.errors.InputError` for images and labels that do not fit together or do not fit the network,
    for fewer than two images, and for a network whose last activation map has no places or whose logits are not its
    head of that map's mean.
    """
    start = time.perf_counter()
    subject = ScoredNetwork(network, images, config, temperature)

    def tell(done: int) -> None:
        if on_images is not None:
            on_images(done, subject.n + subject.masked_n)

    first = first_pass(subject, stand_ins, tell)
    sources = {**first.maps, names.REFERENCE_MAPS: first.reference}
    shared = same_maps(config.methods)
    once = {name: maps for name, maps in sources.items() if name not in shared}
    masked = masking_excess(subject, first, once, images=subject.masked_n, tell=lambda done: tell(subject.n + done))
    for method, same in shared.items():
        masked |= {f"{method}/{name}": masked[f"{same}/{name}"] for name in EXCESSES}
    return report_of(
        {**first.columns, **agreements(first, sources), **masked},
        config,
        temperature=temperature,
        stand_ins=tuple(stand_ins or ()),
        seconds=time.perf_counter() - start,
    )
