"""The two passes of the evaluator over a network's images.

The first makes the maps, the paper's five metrics, and the logits of images with cells deleted. The second masks images
by their own map and by another image's, in place and shifted.

Shapes: N images of a batch, n of all, G×G = Z cells of the common grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study import metrics as names
from study.config import EvaluationConfig
from study.errors import InputError
from study.faithfulness import deletion, grid
from study.faithfulness.batch import Batch, score_batch
from study.faithfulness.calibration import at_temperature
from study.faithfulness.localization import localization
from study.faithfulness.masking import gaussian_blur, undefined_maps, upsampled_masks
from study.faithfulness.metrics import combined
from study.faithfulness.protocols import PROTOCOLS
from study.networks.folding import folded
from study.networks.guided import input_gradients
from study.saliency import SCALE_DEPENDENT, PixelOptions, evaluating, saliency_maps

#: How many other images' maps each map's agreement is compared with. They cost no forward pass.
OTHERS = 8
#: The columns of a source that masking makes.
EXCESSES = ("own_excess", "other_excess", "masking_excess")
#: Logits that differ by less than this share of their size between deleted cells differ by rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class FirstPass:
    """What the first pass over the images collects, on the CPU.

    ``columns``: per-image values (n,), those of the five metrics (masked_n,). ``maps``: per method and stand-in
    (n, G, G), of the calibrated network, in [0, 1], all zero where undefined. ``logits``, ``blurred_logits``,
    ``hidden_logits`` (n, classes) of the calibrated network, ``target`` (n,). ``drops`` (n, Z): by how much the class's
    logit falls when a cell is deleted. ``halves`` (masked_n, V, Z) and ``half_logits`` (masked_n, V): random halves of
    the cells and the logits with these alone. ``reference`` (masked_n, G, G): the linear fit to all of them.
    """

    columns: dict[str, Tensor]
    maps: dict[str, Tensor]
    logits: Tensor
    blurred_logits: Tensor
    hidden_logits: Tensor
    target: Tensor
    drops: Tensor
    halves: Tensor
    half_logits: Tensor
    reference: Tensor


class Scorer:
    """One network, as it is and at its calibrated temperature, and the images that it is scored on."""

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        config: EvaluationConfig,
        temperature: float,
        device: torch.device | str = "cpu",
    ) -> None:
        _check(network, images, labels)
        self.n = len(labels)
        self.masked_n = min(config.masking_images or self.n, self.n)
        self.protocol = PROTOCOLS[config.protocol]
        self.calibrated = at_temperature(folded(network), temperature)
        self._network, self._inference = network, folded(network)
        self._images, self._labels = images, labels
        self._config, self._temperature, self._device = config, temperature, device
        self._scale = torch.tensor(std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._shift = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    def first_pass(
        self,
        *,
        masks: Tensor | None = None,
        stand_ins: Mapping[str, Tensor],
        options: PixelOptions = PixelOptions(),  # noqa: B008, frozen
        tell: Callable[[int], None] = lambda done: None,
    ) -> FirstPass:
        """Maps, the five metrics, alignment, and what the class's logit says of cells."""
        found: dict[str, list[Tensor]] = {}
        columns: dict[str, list[Tensor]] = {}
        single = deletion.single_deletions().expand(self.n, -1, -1)
        halves = deletion.random_halves(self.masked_n, self._config.random_seed)
        with evaluating(self._network), torch.no_grad():
            for rows in self._batches(self.n):
                batch, own_maps, calibrated_maps = self._explained(rows, stand_ins, options)
                if rows.start == 0:
                    _check_head(self._network, self._inference, batch.x[:1], batch.logits[:1] * self._temperature)
                new = self._first_columns(rows, batch, own_maps, masks)
                deleted = {
                    name: deletion.masked_logits(
                        self.calibrated, batch.x[: len(of)], batch.hidden[: len(of)], of.to(self._device),
                        batch.target[: len(of)],
                    )
                    for name, of in (("single", single[rows]), ("halves", halves[rows]))
                    if len(of)
                }  # fmt: skip
                whole = deletion.centred_logits(batch.logits, batch.target)
                collected = {
                    "logits": batch.logits, "blurred": batch.blurred_logits, "hidden": batch.hidden_logits,
                    "target": batch.target, "whole": whole, **deleted,
                    **{f"map/{name}": on_grid(m) for name, m in calibrated_maps.items()},
                }  # fmt: skip
                for store, values in ((found, collected), (columns, new)):
                    for name, value in values.items():
                        store.setdefault(name, []).append(value.detach().cpu())
                tell(rows.stop)
        joined = {name: torch.cat(parts) for name, parts in found.items()}
        whole = joined["whole"][:, None]
        drops = whole - joined["single"]
        drops[drops.amax(1) - drops.amin(1) <= _ROUNDING * joined["logits"].abs().amax(1)] = 0
        of_halves = slice(self.masked_n)
        design = torch.cat([torch.ones_like(single[of_halves, :1]), single[of_halves], halves], 1)
        logits = torch.cat([whole[of_halves], joined["single"][of_halves], joined["halves"]], 1)
        reference = deletion.reference_map(design, logits)
        return FirstPass(
            columns={name: torch.cat(parts) for name, parts in columns.items()},
            maps={name.removeprefix("map/"): m for name, m in joined.items() if name.startswith("map/")},
            logits=joined["logits"],
            blurred_logits=joined["blurred"],
            hidden_logits=joined["hidden"],
            target=joined["target"],
            drops=drops,
            halves=halves,
            half_logits=joined["halves"],
            reference=on_grid(reference.float().view(-1, grid.CELLS, grid.CELLS)),
        )

    def _explained(
        self, rows: slice, stand_ins: Mapping[str, Tensor], options: PixelOptions
    ) -> tuple[Batch, dict[str, Tensor], dict[str, Tensor]]:
        """A batch, and its maps by the network as it is and by the calibrated one."""
        pixels = self._images[rows].to(self._device).float() / 255
        x = ((pixels - self._shift) / self._scale).contiguous(memory_format=torch.channels_last)
        classes = self._labels[rows].to(self._device) if self.protocol.class_choice == "label" else None
        methods = self._config.methods
        found = saliency_maps(self._network, x, classes, methods, inference=self._inference, options=options)
        target = found.logits.argmax(1) if classes is None else classes
        maps = {**found.maps, **{name: m[rows].to(self._device) for name, m in stand_ins.items()}}
        again = [m for m in methods if m in SCALE_DEPENDENT]
        calibrated = dict(maps)
        if again and self._temperature != 1:
            calibrated |= saliency_maps(self.calibrated, x, target, again, inference=self.calibrated).maps
        blurred = self._blurred(x)
        batch = self._batch(
            x, pixels, blurred, target, found.logits / self._temperature, self.calibrated(blurred), None
        )
        return batch, maps, calibrated

    def _batch(
        self,
        x: Tensor,
        pixels: Tensor,
        blurred: Tensor,
        target: Tensor,
        logits: Tensor,
        blurred_logits: Tensor,
        hidden_logits: Tensor | None,
    ) -> Batch:
        over_blur = self.protocol.hidden == "blurred"
        if hidden_logits is None:
            hidden_logits = blurred_logits if over_blur else self.calibrated(torch.zeros_like(x[:1])).expand(len(x), -1)
        return Batch(
            x, pixels, blurred, blurred if over_blur else torch.zeros_like(x), target, logits, blurred_logits,
            hidden_logits, self._shift, self._scale, over_blur,
        )  # fmt: skip

    def _first_columns(
        self, rows: slice, batch: Batch, own_maps: dict[str, Tensor], masks: Tensor | None
    ) -> dict[str, Tensor]:
        """Per image: label, what was predicted, alignment; of the first ``masked_n`` the five metrics."""
        y = self._labels[rows].to(self._device)
        predicted = batch.logits.argmax(1)
        columns: dict[str, Tensor] = {"label": y, "predicted": predicted, "correct": predicted == y}
        delta, guided = input_gradients(self._network, batch.x, y)
        columns["alignment"] = F.cosine_similarity(_direction(delta), _direction(guided))
        masked = min(self.masked_n, rows.stop) - rows.start
        if masked > 0:
            first = _rows_of(batch, masked, self._temperature)
            columns |= score_batch(
                self._inference, first, {name: m[:masked] for name, m in own_maps.items()}, self.protocol
            )
        if masks is not None:
            for method, raw in own_maps.items():
                located = localization(raw, masks[rows].to(self._device))
                columns |= {f"{method}/{name}": values for name, values in located.items()}
        return columns

    def agreements(self, first: FirstPass, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Columns of every source's agreements in percent, the own map's less the mean of other images' maps'.

        As long as the source, those with halves of the cells as long as the images that are masked.
        """
        indifferent = first.drops.amax(1) == first.drops.amin(1)
        unless_finite = _nan_unless_finite(first)
        columns: dict[str, Tensor] = {}
        for name, map_nGG in sources.items():
            flat, n = map_nGG.flatten(1), len(map_nGG)
            others = [grid.partners(n, k) for k in range(1, min(OTHERS, n - 1) + 1)]
            undefined = undefined_maps(map_nGG) | indifferent[:n]
            measures: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
                names.DELETION_AGREEMENT.name: (n, lambda m: deletion.rank_agreement(m, first.drops[: len(m)])),
                names.SUBSET_AGREEMENT.name: (
                    self.masked_n,
                    lambda m: deletion.subset_agreement(m, first.halves, first.half_logits),
                ),
            }
            for measure, (of_n, agreement) in measures.items():
                own = agreement(flat[:of_n])
                other = torch.stack([agreement(flat[k[:of_n]]) for k in others]).mean(0)
                columns[f"{name}/{measure}"] = torch.where(undefined[:of_n], 0.0, own - other) + unless_finite[:of_n]
                columns[f"{name}/other_{measure}"] = other
            columns[f"{name}/undefined"] = undefined
        return columns

    def masking(
        self,
        first: FirstPass,
        sources: Mapping[str, Tensor],
        *,
        images: int,
        tell: Callable[[int], None] = lambda done: None,
    ) -> dict[str, Tensor]:
        """Columns of every source's masking excess on the first ``images``, in percentage points.

        ``own_excess``: what the map's place adds over the same map moved; ``other_excess``: the same of another image's
        map; ``masking_excess``: the difference, 0 where the own map is undefined.
        """
        offsets = grid.shift_offsets(self.n, self._config.random_seed, self._config.shifts)
        parts: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for rows in self._batches(images):
                batch = self._again(rows, first)
                masks: dict[str, Tensor] = {}
                for name, map_nGG in sources.items():
                    partner = grid.partners(len(map_nGG))[rows]
                    for whose, chosen in (("own", map_nGG[rows]), ("other", map_nGG[partner])):
                        masks[f"{name} {whose}"] = chosen
                        for s in range(offsets.shape[1]):
                            masks[f"{name} {whose} {s}"] = grid.shifted(chosen, offsets[rows, s])
                columns = score_batch(
                    self.calibrated, batch, {k: m.to(self._device) for k, m in masks.items()}, self.protocol
                )
                total = {k: combined({part: columns[f"{k}/{part}"] for part in names.PARTS}).cpu() for k in masks}
                for name, map_nGG in sources.items():
                    excess = {
                        whose: total[f"{name} {whose}"]
                        - torch.stack([total[f"{name} {whose} {s}"] for s in range(offsets.shape[1])]).mean(0)
                        for whose in ("own", "other")
                    }
                    undefined = undefined_maps(map_nGG[rows])
                    new = {
                        "own_excess": excess["own"],
                        "other_excess": excess["other"],
                        names.MASKING_EXCESS.name: torch.where(
                            undefined, 0.0 * excess["own"], excess["own"] - excess["other"]
                        ),
                    }
                    for column, values in new.items():
                        parts.setdefault(f"{name}/{column}", []).append(values)
                tell(rows.stop)
        return {name: torch.cat(values) for name, values in parts.items()}

    def _again(self, rows: slice, first: FirstPass) -> Batch:
        """The batch of the first pass, of which the logits were kept."""
        pixels = self._images[rows].to(self._device).float() / 255
        x = ((pixels - self._shift) / self._scale).contiguous(memory_format=torch.channels_last)
        logits, blurred_logits, hidden_logits, target = (
            v[rows].to(self._device) for v in (first.logits, first.blurred_logits, first.hidden_logits, first.target)
        )
        return self._batch(x, pixels, self._blurred(x), target, logits, blurred_logits, hidden_logits)

    def _blurred(self, x: Tensor) -> Tensor:
        return gaussian_blur(x, self.protocol.blur_kernel, self.protocol.blur_sigma)

    def _batches(self, n: int) -> Iterator[slice]:
        for start in range(0, n, self._config.batch_size):
            yield slice(start, min(start + self._config.batch_size, n))


def _rows_of(batch: Batch, n: int, temperature: float) -> Batch:
    """The first ``n`` images of a batch, with the logits of the network as it is."""
    return Batch(
        batch.x[:n], batch.pixels[:n], batch.blurred[:n], batch.hidden[:n], batch.target[:n],
        batch.logits[:n] * temperature, batch.blurred_logits[:n] * temperature, batch.hidden_logits[:n] * temperature,
        batch.shift, batch.scale, batch.over_blur,
    )  # fmt: skip


def on_grid(map_Nhw: Tensor) -> Tensor:
    """(N, G, G) in [0, 1]; all zero where it points nowhere."""
    size = (grid.CELLS, grid.CELLS)
    return upsampled_masks(grid.to_grid(map_Nhw), size)[:, 0]


def _nan_unless_finite(first: FirstPass) -> Tensor:
    return torch.where(first.logits.isfinite().all(1) & first.drops.isfinite().all(1), 0.0, math.nan)


def _check(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or not len(images):
        raise InputError(
            f"faithfulness: images are {images.dtype} of shape {tuple(images.shape)}; they must be uint8 (n, 3, H, W) "
            "with n at least 1"
        )
    if labels.shape != images.shape[:1]:
        raise InputError(f"faithfulness: {len(images)} images and labels of shape {tuple(labels.shape)}; give one each")
    if len(images) < 2:
        raise InputError("faithfulness: one image alone has no other image's map to be compared with; score at least 2")
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
