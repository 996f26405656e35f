"""The evaluator: how much a network's maps say about its decisions, beside what the wrong maps get.

docs/decisions/0005 says what is compared with what, and why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from study import metrics as names
from study.config import EvaluationConfig
from study.faithfulness.passes import Scorer
from study.faithfulness.report import FaithfulnessReport, report_of
from study.saliency import PixelOptions, distinct_methods


def evaluate_faithfulness(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    config: EvaluationConfig,
    temperature: float,
    device: torch.device | str = "cpu",
    masks: Tensor | None = None,
    stand_ins: Mapping[str, Tensor] | None = None,
    options: PixelOptions = PixelOptions(),  # noqa: B008, frozen
    on_images: Callable[[int, int], None] | None = None,
) -> FaithfulnessReport:
    """Score ``network`` on uint8 images (n, 3, H, W) with labels (n,), all of them.

    ``temperature`` is the network's calibrated one (:func:`study.faithfulness.calibration.calibrate`); the paper's five
    metrics are those of the network as it is. ``masks`` (n, H, W), True on the object, adds localisation.
    ``stand_ins``: maps (n, h, w) by name that are scored as if they were a method's, beside the methods. ``options``
    are the pixel methods'. ``on_images(done, of)`` follows the progress. What is drawn for an image depends on its
    number and ``config.random_seed`` alone, so the batch size changes nothing. The network's modes and its parameters'
    ``.grad`` stay as they were.

    Raises :class:`study.errors.InputError` for images and labels that do not fit together or do not fit the network,
    for fewer than two images, and for a network whose last activation map has no places or whose logits are not its
    head of that map's mean.
    """
    start = time.perf_counter()
    scorer = Scorer(network, images, labels, mean=mean, std=std, config=config, temperature=temperature, device=device)
    work = scorer.n + scorer.masked_n

    def tell(done: int) -> None:
        if on_images is not None:
            on_images(done, work)

    first = scorer.first_pass(masks=masks, stand_ins=stand_ins or {}, options=options, tell=tell)
    sources = {**first.maps, names.REFERENCE_MAPS: first.reference}
    masked = scorer.masking(first, sources, images=scorer.masked_n, tell=lambda done: tell(scorer.n + done))
    return report_of(
        {**first.columns, **scorer.agreements(first, sources), **masked},
        config,
        protocol=scorer.protocol.identity,
        temperature=temperature,
        distinct=distinct_methods(config.methods),
        stand_ins=tuple(stand_ins or ()),
        seconds=time.perf_counter() - start,
    )
