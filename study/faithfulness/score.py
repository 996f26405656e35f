"""The evaluator: five parts per method, what random maps of the same network get, and the difference of the two."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from study import metrics as names
from study.config import EvaluationConfig
from study.errors import InputError
from study.faithfulness import metrics
from study.faithfulness.accumulate import ImageScores
from study.faithfulness.batch import Batch, score_batch
from study.faithfulness.localization import centre_map, localization
from study.faithfulness.protocols import PROTOCOLS
from study.faithfulness.statistics import image_scores, standard_error
from study.networks.folding import folded
from study.networks.guided import input_gradients
from study.saliency import PixelOptions, distinct_methods, evaluating, saliency_maps


@dataclass(frozen=True)
class MethodScores:
    """Means over images, in percent; ``undefined`` counts maps that point nowhere (they are scored as all-zero)."""

    parts: dict[str, float]
    undefined: int
    mean: float


@dataclass(frozen=True)
class FaithfulnessReport:
    """Scores of one network on given images under one protocol.

    ``faithfulness``: mean over ``distinct`` methods of (100-AD+AI+AG+Ins+100-Del)/5, minus the same for random maps
    (percentage points, -100 to 100, higher is better), with its ``standard_error`` over images. NaN where an output on
    an image or a masked image is not finite. ``alignment``: mean cos(input gradient, guided gradient) in eval mode, 0
    for a gradient of zero norm. ``accuracy``: %. ``seconds``: wall clock of the whole evaluation. ``methods`` has the
    baselines too. ``per_image``: columns (n,) of the values behind every mean.
    """

    accuracy: float
    alignment: float
    faithfulness: float
    standard_error: float
    protocol: str
    images: int
    seconds: float
    methods: dict[str, MethodScores]
    distinct: tuple[str, ...]
    per_image: dict[str, NDArray[Any]]

    def metrics(self) -> dict[str, float]:
        """Everything under its ledger name."""
        values = {
            names.FAITHFULNESS.ledger_name: self.faithfulness,
            names.FAITHFULNESS_ERROR: self.standard_error,
            names.ALIGNMENT.ledger_name: self.alignment,
            names.IMAGE_SECONDS: self.seconds / self.images,
        }
        for method, scores in self.methods.items():
            values |= {names.saliency_metric(method, part): value for part, value in scores.parts.items()}
            values[names.undefined_metric(method)] = float(scores.undefined)
        return values


def evaluate_faithfulness(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    config: EvaluationConfig,
    device: torch.device | str = "cpu",
    masks: Tensor | None = None,
    centre: bool = False,
    options: PixelOptions = PixelOptions(),  # noqa: B008, frozen
    on_images: Callable[[int], None] | None = None,
) -> FaithfulnessReport:
    """Score ``network`` on uint8 images (n, 3, H, W) with labels (n,), all of them.

    One forward pass serves probabilities, activations and maps; insertion and deletion share their end points; a map
    that two methods share is masked once; masked images go through the network folded for inference. Random maps are
    drawn once for all images from ``config.random_seed``, so the batch size changes nothing. The network's modes and
    its parameters' ``.grad`` stay as they were. ``masks`` (n, H, W), True on the object, adds localisation; ``centre``
    the baseline of a Gaussian in the middle. ``options`` are the pixel methods'. ``on_images(n)`` follows the progress.

    Raises :class:`study.errors.InputError` for images and labels that do not fit together or do not fit the network,
    and for a network whose last activation map has no places or whose logits are not its head of that map's mean.
    """
    start = time.perf_counter()
    _check(network, images, labels)
    protocol = PROTOCOLS[config.protocol]
    scale = torch.tensor(std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
    shift = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
    generator = torch.Generator().manual_seed(config.random_seed)
    scores = ImageScores(protocol)
    random: Tensor | None = None
    inference = folded(network)
    with evaluating(network), torch.no_grad():
        zero_logits = inference(torch.zeros((1, *images.shape[1:]), device=device))
        for first in range(0, len(labels), config.batch_size):
            rows = slice(first, first + config.batch_size)
            pixels = images[rows].to(device).float() / 255
            y = labels[rows].to(device)
            x = ((pixels - shift) / scale).contiguous(memory_format=torch.channels_last)
            classes = y if protocol.class_choice == "label" else None
            found = saliency_maps(network, x, classes, config.methods, inference=inference, options=options)
            grid = _grid(found.maps, inference, x)
            if random is None:
                _check_head(network, inference, x[:1], found.logits[:1])
                random = torch.rand((len(labels), *grid), generator=generator)
            predicted = found.logits.argmax(1)
            maps = {**found.maps, names.RANDOM_MAPS: random[rows].to(device)}
            if centre:
                maps[names.CENTRE_MAPS] = centre_map(grid).expand(len(y), -1, -1).to(device)
            target = predicted if classes is None else classes
            batch = Batch(x, pixels, target, found.logits, zero_logits, shift, scale)
            columns = score_batch(inference, batch, maps, protocol)
            if masks is not None:
                for method, raw in maps.items():
                    located = localization(raw, masks[rows].to(device))
                    columns |= {f"{method}/{name}": values for name, values in located.items()}
            columns |= {"label": y, "predicted": predicted, "correct": predicted == y}
            delta, guided = input_gradients(network, x, y)
            columns["alignment"] = F.cosine_similarity(_direction(delta), _direction(guided))
            scores.update(columns)
            if on_images is not None:
                on_images(len(scores))
    return _report(scores, config, time.perf_counter() - start)


def _grid(maps: Mapping[str, Tensor], inference: nn.Module, x_NCHW: Tensor) -> tuple[int, int]:
    """Height and width of the last activation map: baselines have the grid of class activation maps."""
    sizes = {(m.shape[1], m.shape[2]) for m in maps.values()} - {(x_NCHW.shape[2], x_NCHW.shape[3])}
    if sizes:
        return sizes.pop()
    shape = inference.features(x_NCHW[:1]).shape  # type: ignore[operator]
    return int(shape[2]), int(shape[3])


def _check(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or not len(images):
        raise InputError(
            f"faithfulness: images are {images.dtype} of shape {tuple(images.shape)}; they must be uint8 (n, 3, H, W) "
            "with n at least 1"
        )
    if labels.shape != images.shape[:1]:
        raise InputError(f"faithfulness: {len(images)} images and labels of shape {tuple(labels.shape)}; give one each")
    classes = getattr(getattr(network, "head", None), "out_features", None)
    if classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"faithfulness: labels run from {int(labels.min())} to {int(labels.max())} "
            f"and the network knows classes 0 to {classes - 1}"
        )


def _check_head(network: nn.Module, inference: nn.Module, x_NCHW: Tensor, logits_NC: Tensor) -> None:
    """The maps' closed forms hold for GAP + linear alone: of another head they would be wrong, and nothing shows it.

    The tolerance is wide (a kernel chosen for another batch size, reduced precision) beside what another head does.
    """
    difference = (inference(x_NCHW).float() - logits_NC).abs().max()
    if difference > 0.05 * logits_NC.abs().max().clamp(min=1):  # not so for NaN, which is scored as NaN
        raise InputError(
            f"faithfulness: the logits of {type(network).__name__} are not its head of the mean of features(x); "
            "only such networks are scored"
        )


def _direction(gradient_NCHW: Tensor) -> Tensor:
    """(N, C·H·W) with largest absolute value 1 (all zero stays so): a confident image's tiny gradient still points."""
    flat = gradient_NCHW.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    return flat / torch.where(largest == 0, torch.ones_like(largest), largest)


def _report(scores: ImageScores, config: EvaluationConfig, seconds: float) -> FaithfulnessReport:
    means, per_image = scores.compute(), scores.columns()
    methods: dict[str, MethodScores] = {}
    baselines = [m for m in (names.RANDOM_MAPS, names.CENTRE_MAPS) if f"{m}/undefined" in means]
    for method in (*config.methods, *baselines):
        parts = {part: means[f"{method}/{part}"] for part in names.PARTS}
        total = metrics.combined({part: torch.tensor(value, dtype=torch.float64) for part, value in parts.items()})
        methods[method] = MethodScores(parts, int(means[f"{method}/undefined"]), float(total))
        del per_image[f"{method}/undefined"]
    distinct = distinct_methods(config.methods)
    # A mean of differences, not a difference of means: a network with constant output scores exactly 0.
    over_random = [methods[method].mean - methods[names.RANDOM_MAPS].mean for method in distinct]
    wanted = {n: v for n, v in per_image.items() if n.split("/")[0] in (*distinct, names.RANDOM_MAPS) or "/" not in n}
    return FaithfulnessReport(
        accuracy=100 * means["correct"],
        alignment=means["alignment"],
        faithfulness=sum(over_random) / len(over_random),
        standard_error=standard_error(image_scores(wanted)["faithfulness"]),
        protocol=scores.protocol.identity,
        images=len(scores),
        seconds=seconds,
        methods=methods,
        distinct=distinct,
        per_image=per_image,
    )
