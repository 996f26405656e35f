"""``python -m study.evaluate NETWORK [OTHER]``: the faithfulness table of a network, or of two, paired by image.

NETWORK is a folder that ``study.train``, a study or ``analysis.export`` wrote, or a trial of a study as STUDY/TRIAL.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import metrics
from study.config import EvaluationConfig
from study.errors import InputError, Parser, refuse_empty, run_command
from study.metrics import METHODS, PROTOCOLS
from study.storage import DEFAULT_STORAGE

if TYPE_CHECKING:
    import torch
    from torch import nn

    from study.data import Dataset, Split
    from study.faithfulness import FaithfulnessReport

DEFAULT_METHODS = "grad_cam,grad_cam_plus_plus,xgrad_cam,layer_cam,ablation_cam"
_SANITY_IMAGES = 32


def parser() -> argparse.ArgumentParser:
    parse = Parser(
        prog="python -m study.evaluate",
        description="Score how faithful a network's saliency maps are; of two networks, the paired difference.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parse.add_argument
    add("networks", nargs="+", metavar="NETWORK", help="folder of a trained network, or STUDY/TRIAL; two are compared")
    add("--data", default=None, help="where its images are on this machine (None: where they were in training)")
    add("--split", default="val", help="val or test; looking at test is noted, choose nothing by it")
    add("--methods", default=DEFAULT_METHODS, help=f"saliency methods, or all: {', '.join(METHODS)}")
    add("--protocol", default="paper", help=f"faithfulness protocol: {', '.join(PROTOCOLS)}")
    add("--images", type=int, default=500, help="score the first so many images of the split")
    add("--gallery", default="0,1,2,3,4,5", help="images to draw, by number in the split; '' draws none")
    add("--compare-smoothgrad", action="store_true", help="what denoising at inference costs and gains beside it")
    add("--sanity", action="store_true", help="the cascading model-parameter randomisation check")
    add("--storage", default=DEFAULT_STORAGE, help="where results of studies live")
    add("--tracking-uri", default=None, help="MLflow server or store (None: mlflow.db in the results folder)")
    add("--out", default="results/evaluate", help="folder of table, per-image scores and gallery")
    return parse


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network under evaluation: as it was named, and as tables name it; ``run_id`` where a ledger has it."""

    name: str
    title: str
    network: nn.Module
    card: dict[str, Any]
    run_id: str | None


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args, allowed=("gallery",))
    methods = tuple(METHODS) if args.methods == "all" else tuple(args.methods.split(","))
    if args.compare_smoothgrad:
        methods = (*methods, *(m for m in ("input_gradient", "smoothgrad") if m not in methods))
    config = EvaluationConfig(methods=methods, protocol=args.protocol, images=args.images)
    if args.split not in ("val", "test"):
        raise InputError(f"--split: unknown value {args.split!r}; choose val or test")
    if len(set(args.networks)) < len(args.networks) <= 2:
        raise InputError(f"{args.networks[0]} is given twice; a network is compared with another one")
    if len(args.networks) > 2:
        raise InputError(f"{len(args.networks)} networks are given; one is scored, two are compared")
    gallery = _numbers("--gallery", args.gallery)
    from study.storage import Storage

    out = Path(args.out)
    Storage.parse(args.out).check_writable()
    import torch

    from study.data import open_card_data

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subjects = [_open(name, args, device) for name in args.networks]
    dataset: Dataset | None = None
    for subject in subjects:
        _, dataset = open_card_data(subject.card, args.data)
    assert dataset is not None
    if len({json.dumps({**s.card["config"]["data"], "source": s.card["data_fingerprint"]}) for s in subjects}) > 1:
        raise InputError("the two networks were trained on different images; only equal images can be compared")
    split = _split(dataset, args, subjects)
    n = min(args.images, len(split.labels))
    if gallery and max(gallery) >= len(split.labels):
        raise InputError(f"--gallery {args.gallery}: the split has images 0 to {len(split.labels) - 1}")
    reports = [_score(s, dataset, split, n, config, device) for s in subjects]
    out.mkdir(parents=True, exist_ok=True)
    from study.faithfulness import table

    lines = [f"{args.split} split, {n} images, protocol {reports[0].protocol}, 95 % bootstrap intervals over images"]
    for subject, report in zip(subjects, reports, strict=True):
        lines += ["", *table.scores(subject.title, report, _milliseconds(subject, dataset, split, methods, device))]
    if args.compare_smoothgrad:
        lines += ["", *table.smoothgrad(subjects[0].title, reports[0])]
    if len(reports) == 2:
        lines += ["", *table.differences(subjects[0].title, subjects[1].title, *reports)]
    if args.sanity:
        for subject in subjects:
            lines += ["", *_sanity(subject, dataset, split, methods, device)]
    print("\n".join(lines))
    (out / "table.txt").write_text("\n".join(lines) + "\n")
    _write(out, subjects, reports, args)
    if gallery:
        _draw(out / "gallery.png", subjects, dataset, split, gallery, methods, device)
    print(f"results  {out}", file=sys.stderr)
    print(f"next     look at {out / 'gallery.png' if gallery else out / 'table.txt'}", file=sys.stderr)
    return 0


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"{option} {text!r}: not a list of numbers, such as 0,1,2") from None
    if any(number < 0 for number in numbers):
        raise InputError(f"{option} {text!r}: images are numbered from 0")
    return numbers


def _open(name: str, args: argparse.Namespace, device: torch.device) -> Subject:
    """From a folder, or from the ledger. Raises :class:`InputError` where there is no such network."""
    from study.training.checkpoint import load_model

    folder, run_id = Path(name), None
    with _fetched(name, args) as fetched:
        if not folder.exists() and fetched is not None:
            folder, run_id = fetched
        network, card = load_model(folder)
    return Subject(name, _title(name, args.networks), network.to(device), card, run_id or card.get("run_id"))


def _title(name: str, names: Sequence[str]) -> str:
    """The last part of a folder's path where that tells the networks apart."""
    short = [Path(other).name if Path(other).exists() else other for other in names]
    return short[names.index(name)] if len(set(short)) == len(set(names)) else name


@contextmanager
def _fetched(name: str, args: argparse.Namespace) -> Iterator[tuple[Path, str] | None]:
    """A trial's network, downloaded for as long as it takes to read it."""
    study, _, trial = name.rpartition("/")
    if Path(name).exists() or not study or not trial.isdigit() or "/" in study:
        yield None
        return
    import tempfile

    ledger = _ledger(study, args)
    runs = [r for r in ledger.trials() if r.trial == int(trial)]
    if not runs:
        raise InputError(f"{name}: study {study!r} has no trial {trial}")
    with tempfile.TemporaryDirectory() as folder:
        for file in (metrics.MODEL_FILE, metrics.MODEL_CONFIG_FILE):
            found = ledger.download(runs[0].run_id, f"{metrics.CHECKPOINT_ARTIFACTS}/{file}", Path(folder) / "part")
            found.replace(Path(folder) / file)
        yield Path(folder), runs[0].run_id


def _ledger(study: str, args: argparse.Namespace) -> Any:
    from study.ledger import Ledger, default_tracking_uri
    from study.storage import Storage

    return Ledger(args.tracking_uri or default_tracking_uri(Storage.parse(args.storage).local), study)


def _split(dataset: Dataset, args: argparse.Namespace, subjects: Sequence[Subject]) -> Split:
    """The images to score. Opening the test split is noted in the ledger of every network that has one."""
    if args.split == "val":
        return dataset.validation
    from study.ledger.openings import note_look
    from study.storage import Storage, check_study_name

    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    storage = Storage.parse(args.storage)
    for subject in subjects:
        if subject.run_id is not None and not Path(subject.name).exists():
            study = subject.name.rpartition("/")[0]
            entry = {"when": when, "run_id": subject.run_id, "purpose": "study.evaluate"}
            note_look(storage, study, entry)
            looks = _ledger(study, args).log_test_opening(**entry)
            print(f"{subject.name}: scoring on the test split (look {looks} in this study)", file=sys.stderr)
        else:
            if subject.run_id is not None and "study" in subject.card:  # exported: is its study here?
                study = str(subject.card["study"])
                check_study_name(f"{metrics.MODEL_CONFIG_FILE}: study", study)
                if (storage.local / study).is_dir():
                    note_look(storage, study, {"when": when, "run_id": subject.run_id, "purpose": "study.evaluate"})
            print(f"{subject.name}: scoring on the test split; choose nothing by what it shows", file=sys.stderr)
    return dataset.test()


def _score(
    subject: Subject, dataset: Dataset, split: Split, n: int, config: EvaluationConfig, device: torch.device
) -> FaithfulnessReport:
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from study.faithfulness import evaluate_faithfulness

    masks = None if split.masks is None else torch.as_tensor(split.masks[:n])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"scoring {subject.title}", total=n)
        return evaluate_faithfulness(
            subject.network,
            torch.as_tensor(split.images[:n]),
            torch.as_tensor(split.labels[:n]),
            mean=dataset.mean,
            std=dataset.std,
            config=dataclasses.replace(config, batch_size=min(config.batch_size, 64)),
            device=device,
            masks=masks,
            centre=True,
            on_images=lambda images: progress.update(task, completed=images),
        )


def _normalized(dataset: Dataset, images: Any, device: torch.device) -> torch.Tensor:
    import torch

    from study.data.augment import normalize

    return normalize(torch.as_tensor(images).to(device), dataset.mean, dataset.std)


def _milliseconds(
    subject: Subject, dataset: Dataset, split: Split, methods: Sequence[str], device: torch.device
) -> dict[str, float]:
    """Wall clock per image of making each method's maps, on a few images."""
    import torch

    from study.networks.folding import folded
    from study.saliency import saliency_maps

    x = _normalized(dataset, split.images[:8], device)
    classes = torch.as_tensor(split.labels[:8]).to(device)
    inference = folded(subject.network)
    spent = {}
    for method in methods:
        seconds = []
        for _ in range(3):  # the first call prepares what later ones share
            start = time.perf_counter()
            saliency_maps(subject.network, x, classes, [method], inference=inference).logits.cpu()
            seconds.append(time.perf_counter() - start)
        spent[method] = 1000 * min(seconds) / len(x)
    return spent


def _sanity(
    subject: Subject, dataset: Dataset, split: Split, methods: Sequence[str], device: torch.device
) -> list[str]:
    import torch
    from torch.nn import functional as F

    from study.faithfulness import table
    from study.faithfulness.randomization import similarity_after_randomization
    from study.saliency import PixelOptions, saliency_maps

    x = _normalized(dataset, split.images[:_SANITY_IMAGES], device)
    classes = torch.as_tensor(split.labels[:_SANITY_IMAGES]).to(device)

    def maps_of(network: nn.Module) -> dict[str, torch.Tensor]:
        maps = saliency_maps(network, x, classes, methods, options=PixelOptions(samples=5, steps=8)).maps
        # Ranks of pixels are counted pair by pair: of pixel maps, those of 8×8 blocks.
        return {name: F.adaptive_avg_pool2d(m, 8) if m.shape[-1] > 16 else m for name, m in maps.items()}

    stages, similarities = similarity_after_randomization(subject.network.eval(), maps_of)
    return table.randomization(subject.title, stages, similarities, len(x))


def _write(
    out: Path, subjects: Sequence[Subject], reports: Sequence[FaithfulnessReport], args: argparse.Namespace
) -> None:
    """Per-image scores as Parquet, everything else as JSON."""
    import pyarrow as pa
    from pyarrow import parquet

    document = []
    for i, (subject, report) in enumerate(zip(subjects, reports, strict=True)):
        table = pa.table({name: pa.array(values) for name, values in report.per_image.items()})
        parquet.write_table(table, out / f"per_image_{i}.parquet")
        document.append(
            {
                "network": subject.name,
                "config": subject.card["config"],
                "split": args.split,
                "protocol": report.protocol,
                "images": report.images,
                "accuracy": report.accuracy,
                "faithfulness": report.faithfulness,
                "standard_error": report.standard_error,
                "alignment": report.alignment,
                "seconds": report.seconds,
                "methods": {m: dataclasses.asdict(s) for m, s in report.methods.items()},
            }
        )
    (out / "evaluation.json").write_text(json.dumps(document, indent=2) + "\n")


def _draw(
    file: Path,
    subjects: Sequence[Subject],
    dataset: Dataset,
    split: Split,
    numbers: Sequence[int],
    methods: Sequence[str],
    device: torch.device,
) -> None:
    import torch

    from study.faithfulness.gallery import draw_gallery
    from study.saliency import saliency_maps

    images, labels = split.images[list(numbers)], split.labels[list(numbers)]
    x = _normalized(dataset, images, device)
    maps, captions = {}, {}
    for subject in subjects:
        found = saliency_maps(subject.network, x, torch.as_tensor(labels).to(device), methods)
        maps[subject.title] = {name: m.cpu() for name, m in found.maps.items()}
        p, predicted = found.logits.softmax(1).max(1)
        captions[subject.title] = [
            f"{dataset.classes[c]} {100 * q:.0f} %" for q, c in zip(p.tolist(), predicted.tolist(), strict=True)
        ]
    draw_gallery(file, images, [dataset.classes[c] for c in labels.tolist()], maps, captions)


if __name__ == "__main__":
    sys.exit(run_command(main))
