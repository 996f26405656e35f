"""Which number is faithfulness? Candidates on trained, untrained, collapsed and falsified networks.

``python -m benchmarks.yardstick --data FOLDER`` scores what ``benchmarks.yardstick_networks`` trained, a JSON file
each, and goes on where it was interrupted; ``--table`` prints what they say. docs/decisions/0005 has the criteria.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.yardstick_networks import METHODS, MIXES, SAMPLES, Entry, Sample, entries, saved
from benchmarks.yardstick_table import table
from study import metrics, names
from study.config import DataConfig, EvaluationConfig
from study.data import Dataset, open_dataset
from study.data.labelled import LabelledImages
from study.faithfulness import grid
from study.faithfulness.calibration import temperature_of
from study.faithfulness.controls import agreements, masking_excess
from study.faithfulness.first_pass import FirstPass, first_pass, on_grid
from study.faithfulness.localization import centre_map
from study.faithfulness.randomization import cascade
from study.faithfulness.scored_network import ScoredNetwork
from study.faithfulness.stand_ins import edge_energy
from study.saliency import saliency_maps
from study.training.checkpoint import load_model

CLASS_ACTIVATION = (*METHODS, "xgrad_cam", "layer_cam", "ablation_cam", "score_cam")
COLUMNS = ("deletion_agreement", "subset_agreement", "masking_excess")
_DEGRADED, _REFERENCE = 100, 250  # images on which degraded maps, and the reference's, are masked
DATA = Path(__file__).parent / "data" / "yardstick"
_GATED = ("airbench16-3-0", "tiny-4-0", "airbench16-3-lambda0.3-0")
#: For the gate of another image's map alone, on every image: A's noise on fewer is wider than its bound.
_GATED_AGAIN = ("airbench16-12-0", "airbench16-12-1", "tiny-4-0", "tiny-4-1")


class Subject:
    """A trained network and the images of its data set."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.network, self.card = load_model(folder)
        self.dataset = dataset
        self.temperature = self.calibrated(self.network)

    def calibrated(self, network: nn.Module) -> float:
        return temperature_of(network, self.dataset, 500)

    def about(self) -> dict[str, Any]:
        """Accuracy on all validation images (%; None untrained), temperature and what was trained how."""
        config = self.card["config"]
        accuracy = self.card["scores"].get(metrics.ACCURACY.ledger_name)
        kept = ("network", "epochs", "lr", "reg_weight", "seed")
        return {"accuracy": accuracy, "temperature": self.temperature, **{k: config[k] for k in kept}}

    def images(self, n: int) -> LabelledImages:
        return LabelledImages.of(self.dataset, self.dataset.scored(n, 500))

    def unseen(self, n: int, part: int) -> LabelledImages:
        """Images that a network trained on few did not see; different parts have none in common."""
        start = self.card["config"]["data"]["train_images"] + n * part
        return LabelledImages.of(self.dataset, self.dataset.train)[start : start + n]

    def scored(self, images: LabelledImages, **other: Any) -> ScoredNetwork:
        """Of the images; ``other`` replaces network, temperature, protocol or methods."""
        protocol = other.pop("protocol", "paper")
        methods = other.pop("methods", METHODS)
        config = EvaluationConfig(methods=methods, protocol=protocol, images=None)
        values = {"network": self.network, "temperature": self.temperature, **other}
        return ScoredNetwork(values["network"], images, config, values["temperature"])


def degraded(first: FirstPass) -> dict[str, Tensor]:
    """Every method's maps mixed with one of their shifts, another one than the control's."""
    found = {}
    for method in METHODS:
        maps = first.maps[method]
        moved = grid.shifted(maps, grid.shift_offsets(len(maps), seed=1)[:, 0])
        for percent in MIXES:
            found[f"mix{percent}/{method}"] = (1 - percent / 100) * maps + percent / 100 * moved
    return found


def maps_of(
    network: nn.Module, x_NCHW: Tensor, labels: Tensor, methods: tuple[str, ...] = METHODS
) -> dict[str, Tensor]:
    """Maps of images on the common grid, in batches."""
    parts = [
        saliency_maps(network, x, y, methods).maps for x, y in zip(x_NCHW.split(100), labels.split(100), strict=True)
    ]
    return {m: on_grid(torch.cat([p[m] for p in parts])) for m in methods}


def summary(columns: Mapping[str, Tensor], sources: Iterable[str]) -> dict[str, Any]:
    """Per source and candidate: mean, standard error, and the means of even and odd images."""
    found: dict[str, Any] = {}
    for source in sources:
        for column in COLUMNS:
            if f"{source}/{column}" in columns:
                v = columns[f"{source}/{column}"].double().numpy()
                found[f"{source}/{column}"] = {
                    "mean": float(v.mean()), "error": float(v.std(ddof=1) / math.sqrt(len(v))), "images": len(v),
                    "halves": [float(v[::2].mean()), float(v[1::2].mean())],
                }  # fmt: skip
        if f"{source}/undefined" in columns:
            found[f"{source}/undefined"] = float(columns[f"{source}/undefined"].double().mean())
    return found


def trained(subject: Subject) -> dict[str, Any]:
    """All candidates under two protocols, and under degraded maps."""
    images = subject.images(1000)
    scorer = subject.scored(images)
    first = first_pass(scorer)
    own = {**first.maps, "reference": first.reference}
    x, labels = images.normalized(), images.labels_N
    *_, (_, drawn_anew) = cascade(subject.network, stages=1)
    worse = degraded(first) | {f"layers/{m}": v for m, v in maps_of(drawn_anew, x, labels).items()}
    masked = masking_excess(scorer, first, first.maps, images=scorer.n)
    columns = agreements(first, own | worse) | masked | masking_excess(scorer, first, worse, images=_DEGRADED)
    columns |= masking_excess(scorer, first, {"reference": first.reference}, images=_REFERENCE)
    # The fall under degraded maps is measured on the same images.
    columns |= {f"paired/{name}": values[:_DEGRADED] for name, values in masked.items()}
    blur = subject.scored(images[:500], protocol="blur")
    blurred = first_pass(blur)
    other = agreements(blurred, blurred.maps) | masking_excess(blur, blurred, blurred.maps, images=blur.n)
    found = summary(columns, [*own, *worse, *(f"paired/{name}" for name in METHODS)])
    found |= {f"blur/{k}": v for k, v in summary(other, blurred.maps).items()}
    return subject.about() | found | {"others": others_worth(first)}


def others_worth(first: FirstPass) -> dict[str, float]:
    """Standard error of deletion agreement by the number of other images' maps it is measured over."""
    from study.faithfulness.deletion import rank_agreement

    flat = first.maps["grad_cam"].flatten(1)
    own = rank_agreement(flat, first.drops)
    found, other = {}, []
    for k in range(1, 17):
        other.append(rank_agreement(flat[grid.partners(len(flat), k)], first.drops))
        if k in (1, 2, 4, 8, 16):
            v = own - torch.stack(other).mean(0)
            found[str(k)] = float(v.std() / math.sqrt(len(v)))
    return found


def scored(subject: Subject, images: LabelledImages, *, as_it_is: bool = False) -> dict[str, Any]:
    """All candidates at the calibrated temperature; ``as_it_is`` adds the masking excess at T = 1."""
    scorer = subject.scored(images)
    first = first_pass(scorer)
    own = {**first.maps, "reference": first.reference}
    columns = agreements(first, own) | masking_excess(scorer, first, first.maps, images=scorer.n)
    columns |= masking_excess(scorer, first, {"reference": first.reference}, images=_REFERENCE)
    found = summary(columns, own)
    if as_it_is:
        plain = subject.scored(images, temperature=1.0)
        first = first_pass(plain)
        columns = masking_excess(plain, first, first.maps, images=plain.n)
        found |= {f"T1/{k}": v for k, v in summary(columns, first.maps).items()}
    return subject.about() | found


def few(subject: Subject) -> dict[str, Any]:
    """On 500 validation images."""
    return scored(subject, subject.images(500))


def nothing(subject: Subject, sample: Sample, seed: int) -> dict[str, Any]:
    """Of a network that learned nothing, on images that no other network of its sample is scored on."""
    return scored(subject, subject.unseen(sample.images, sample.part(seed)), as_it_is=True)


def gates(subject: Subject, other: Subject) -> dict[str, Any]:
    """Is anything gained by confidence, by the middle, by another image's map, by chance?"""
    found: dict[str, Any] = {"confidence": {}}
    few = subject.images(40)
    for factor in (1.0, 0.25, 0.5, 2.0, 4.0):
        network = copy.deepcopy(subject.network)
        with torch.no_grad():
            for parameter in network.head.parameters():  # type: ignore[union-attr, operator]
                parameter.mul_(factor)
        methods = CLASS_ACTIVATION
        scorer = subject.scored(few, network=network, temperature=subject.calibrated(network), methods=methods)
        first = first_pass(scorer)
        own = {**first.maps, "reference": first.reference}
        found["confidence"][str(factor)] = summary(
            agreements(first, own) | masking_excess(scorer, first, own, images=scorer.n), own
        )
    images = subject.images(1700)
    scorer = subject.scored(images)
    first = first_pass(scorer)
    x, n = images.normalized(), len(images)
    generator = torch.Generator().manual_seed(0)
    sources = {
        **first.maps,
        "centre": on_grid(centre_map((8, 8)).expand(n, -1, -1)),
        "another image": first.maps["grad_cam"][grid.partners(n, 50)],
        "random": torch.rand((n, grid.CELLS, grid.CELLS), generator=generator),
    }
    found["stand-ins"] = summary(agreements(first, sources) | masking_excess(scorer, first, sources, images=n), sources)
    knowing = {
        "edges": on_grid(edge_energy(images.pixels_NCHW)),
        "another network": maps_of(other.network, x, images.labels_N)["grad_cam"],
    }
    columns = agreements(first, knowing) | masking_excess(scorer, first, knowing, images=500)
    return subject.about() | found | {"knowing": summary(columns, knowing)}


def another_image(subject: Subject) -> dict[str, Any]:
    """What another image's map gets in the place of the network's own, on all images that may be scored."""
    scorer = subject.scored(subject.images(4500), methods=("grad_cam",))
    first = first_pass(scorer)
    maps = first.maps["grad_cam"]
    sources = {"grad_cam": maps, "another image": maps[grid.partners(len(maps), 50)]}
    columns = agreements(first, sources) | masking_excess(scorer, first, sources, images=scorer.n)
    return subject.about() | {"stand-ins": summary(columns, sources)}


def work(source: str) -> list[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """(file, entry's group, what to compute), for every network that is there."""
    dataset = open_dataset(DataConfig(source=source))
    jobs: list[tuple[str, str, Callable[[], dict[str, Any]]]] = []

    def there(entry: Entry, epoch: int) -> bool:
        return (saved(entry, epoch) / names.MODEL_CONFIG_FILE).exists()

    found = entries(source)
    for entry in found:
        for epoch in entry.saved:
            if not there(entry, epoch):
                continue
            folder, name = saved(entry, epoch), f"{entry.folder}-epoch{epoch}"
            if entry.group == "trained" or (entry.group == "long" and epoch == 12):
                jobs.append((name, "trained", lambda f=folder: trained(Subject(f, dataset))))  # type: ignore[misc]
            if entry.group == "long":
                jobs.append((f"{name}-curve", "curve", lambda f=folder: few(Subject(f, dataset))))  # type: ignore[misc]
            if entry.group == "collapsed":
                seed = entry.config.seed
                sample = next(s for s in SAMPLES if seed in s.seeds)
                group = ("untrained" if epoch == 0 else "collapsed") + sample.name
                jobs.append((name, group, lambda f=folder, a=sample, s=seed: nothing(Subject(f, dataset), a, s)))  # type: ignore[misc]
            if entry.group in ("shuffled", "deletions"):
                jobs.append((name, entry.group, lambda f=folder: few(Subject(f, dataset))))  # type: ignore[misc]
    at_hand = {e.folder: saved(e, e.saved[-1]) for e in found if there(e, e.saved[-1])}
    for i, name in enumerate(_GATED):
        other = _GATED[(i + 1) % len(_GATED)]
        if name in at_hand and other in at_hand:
            jobs.append(
                (
                    f"gates-{name}",
                    "gates",
                    lambda a=name, b=other: gates(Subject(at_hand[a], dataset), Subject(at_hand[b], dataset)),
                )  # type: ignore[misc]
            )
    for name in _GATED_AGAIN:
        if name in at_hand:
            jobs.append(
                (f"another-image-{name}", "another image", lambda a=name: another_image(Subject(at_hand[a], dataset)))
            )  # type: ignore[misc]
    return jobs


def main() -> None:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.yardstick", description=__doc__)
    parse.add_argument("--data", help="folder of CIFAR-100's Parquet files; scores what is missing")
    parse.add_argument("--table", action="store_true", help="print what has been found")
    parse.add_argument("--of", type=int, default=1, help="processes that share the work")
    parse.add_argument("--part", type=int, default=0, help="which of them this is")
    args = parse.parse_args()
    torch.set_num_threads(1)
    if args.data:
        DATA.mkdir(parents=True, exist_ok=True)
        for i, (name, group, compute) in enumerate(work(args.data)):
            file = DATA / f"{name}.json"
            if i % args.of == args.part and not file.exists():
                row = {"name": name, "group": group, **compute()}
                file.write_text(json.dumps(row, indent=1) + "\n")
                print(name, flush=True)
    if args.table:
        print(table([json.loads(file.read_text()) for file in sorted(DATA.glob("*.json"))]))


if __name__ == "__main__":
    main()
