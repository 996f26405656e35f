"""``python -m study.evaluate NETWORK [OTHER]``: the faithfulness table of a network, or of two, paired by image.

NETWORK is a folder that ``study.train``, a study or ``analysis.export`` wrote, or a trial of a study as STUDY/TRIAL.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import metrics, names
from study.command import Parser, refuse_empty, run_command
from study.config import EvaluationConfig
from study.errors import InputError
from study.metrics import METHODS, PROTOCOLS
from study.storage.storage import DEFAULT_STORAGE

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
    add("--masking-images", type=int, default=None, help="mask only the first so many of them, which takes most time")
    add("--gallery", default="0,1,2,3,4,5", help="images to draw, by number in the split; '' draws none")
    add("--compare-smoothgrad", action="store_true", help="what denoising at inference costs and gains beside it")
    add("--sanity", action="store_true", help="the cascading model-parameter randomisation check")
    add("--storage", default=DEFAULT_STORAGE, help="where results of studies live")
    add("--tracking-uri", default=None, help="MLflow server or store (None: mlflow.db in the results folder)")
    add("--out", default="results/evaluate", help="folder of table, per-image scores and gallery")
    return parse


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network under evaluation: as it was named, and as tables name it; ``run_id`` where a ledger has it.

    ``temperature`` is its calibrated one, known once its data are open.
    """

    name: str
    title: str
    network: nn.Module
    card: dict[str, Any]
    run_id: str | None
    temperature: float = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args, allowed=("gallery",))
    methods = tuple(METHODS) if args.methods == "all" else tuple(args.methods.split(","))
    if args.compare_smoothgrad:
        methods = (*methods, *(m for m in ("input_gradient", "smoothgrad") if m not in methods))
    config = EvaluationConfig(
        methods=methods, protocol=args.protocol, images=args.images, masking_images=args.masking_images, batch_size=64
    )
    if args.split not in ("val", "test"):
        raise InputError(f"--split: unknown value {args.split!r}; choose val or test")
    if len(set(args.networks)) < len(args.networks) <= 2:
        raise InputError(f"{args.networks[0]} is given twice; a network is compared with another one")
    if len(args.networks) > 2:
        raise InputError(f"{len(args.networks)} networks are given; one is scored, two are compared")
    gallery = _numbers("--gallery", args.gallery)
    from study.storage.storage import Storage

    out = Path(args.out)
    Storage.parse(args.out).check_writable()
    import torch

    from study.data import open_card_data

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subjects = [_open(name, args, device) for name in args.networks]
    opened = [open_card_data(subject.card, args.data) for subject in subjects]
    dataset = opened[0][1]
    reserved = max(trained.evaluation.calibration_images for trained, _ in opened)
    if len({json.dumps({**s.card["config"]["data"], "source": s.card["data_fingerprint"]}) for s in subjects}) > 1:
        raise InputError("the two networks were trained on different images; only equal images can be compared")
    split = _split(dataset, args, subjects)
    n = (
        len(dataset.scored(args.images, reserved).labels)
        if args.split == "val"
        else min(args.images, len(split.labels))
    )
    if gallery and max(gallery) >= len(split.labels):
        raise InputError(f"--gallery {args.gallery}: the split has images 0 to {len(split.labels) - 1}")
    subjects = [_calibrated(s, dataset, reserved, device) for s in subjects]
    others = subjects[::-1] if len(subjects) == 2 else [None]
    reports = [_score(s, o, dataset, split, n, config, device) for s, o in zip(subjects, others, strict=True)]
    out.mkdir(parents=True, exist_ok=True)
    from study.faithfulness import table

    masked = f"{reports[0].masking_images} of them masked, " if reports[0].masking_images < n else ""
    lines = [
        f"{args.split} split, {n} images, {masked}protocol {reports[0].protocol}, 95 % bootstrap intervals over images",
        table.LEGEND,
    ]
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
    """From a folder, or from the ledger. Raises :class:`StudyError` where there is no such network."""
    from study.training.checkpoint import load_model

    folder, run_id = Path(name), None
    with _fetched(name, args) as fetched:
        if not folder.exists() and fetched is not None:
            folder, run_id = fetched
        network, card = load_model(folder)
    return Subject(name, _title(name, args.networks), network.to(device), card, run_id or card.get("run_id"))


def _title(name: str, networks: Sequence[str]) -> str:
    """The last part of a folder's path where that tells the networks apart."""
    short = [Path(other).name if Path(other).exists() else other for other in networks]
    return short[networks.index(name)] if len(set(short)) == len(set(networks)) else name


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
        for file in (names.MODEL_FILE, names.MODEL_CONFIG_FILE):
            found = ledger.download(runs[0].run_id, f"{names.CHECKPOINT_ARTIFACTS}/{file}", Path(folder) / "part")
            found.replace(Path(folder) / file)
        yield Path(folder), runs[0].run_id


def _ledger(study: str, args: argparse.Namespace) -> Any:
    from study.ledger import Ledger, default_tracking_uri
    from study.storage.storage import Storage

    return Ledger(args.tracking_uri or default_tracking_uri(Storage.parse(args.storage).local), study)


def _split(dataset: Dataset, args: argparse.Namespace, subjects: Sequence[Subject]) -> Split:
    """The images to score. Opening the test split is noted in the ledger of every network that has one."""
    if args.split == "val":
        return dataset.validation
    from study.storage.storage import Storage, check_study_name
    from study.storage.test_log import log_opening

    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    storage = Storage.parse(args.storage)
    for subject in subjects:
        if subject.run_id is not None and not Path(subject.name).exists():
            study = subject.name.rpartition("/")[0]
            entry = {"when": when, "run_id": subject.run_id, "purpose": "study.evaluate"}
            log_opening(storage, study, entry)
            looks = _ledger(study, args).log_test_opening(**entry)
            print(f"{subject.name}: scoring on the test split (look {looks} in this study)", file=sys.stderr)
        else:
            if subject.run_id is not None and "study" in subject.card:  # exported: is its study here?
                study = str(subject.card["study"])
                check_study_name(f"{names.MODEL_CONFIG_FILE}: study", study)
                if (storage.local / study).is_dir():
                    log_opening(storage, study, {"when": when, "run_id": subject.run_id, "purpose": "study.evaluate"})
            print(f"{subject.name}: scoring on the test split; choose nothing by what it shows", file=sys.stderr)
    return dataset.test()


def _calibrated(subject: Subject, dataset: Dataset, reserved: int, device: torch.device) -> Subject:
    """At the temperature that its card has, or else at the one that fits the validation images which are not scored."""
    import torch

    from study.faithfulness.calibration import calibrate

    temperature = subject.card.get("temperature")
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        unscored = dataset.calibration(reserved)
        images, labels = torch.as_tensor(unscored.images), torch.as_tensor(unscored.labels)
        temperature = calibrate(subject.network, images, labels, mean=dataset.mean, std=dataset.std, device=device)
    return dataclasses.replace(subject, temperature=float(temperature))


def _score(
    subject: Subject,
    other: Subject | None,
    dataset: Dataset,
    split: Split,
    n: int,
    config: EvaluationConfig,
    device: torch.device,
) -> FaithfulnessReport:
    """Of the first ``n`` images; maps of ``other`` are among those that stand in for the network's own."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from study.faithfulness import evaluate_faithfulness
    from study.faithfulness.calibration import at_temperature
    from study.faithfulness.stand_ins import stand_in_maps

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    scored = (subject.network, torch.as_tensor(split.images[:n]), torch.as_tensor(split.labels[:n]))
    how: dict[str, Any] = {"mean": dataset.mean, "std": dataset.std, "config": config, "device": device}
    how["temperature"] = subject.temperature
    with Progress(*columns, console=Console(stderr=True)) as progress:
        maps = progress.add_task(f"maps that stand in for those of {subject.title}", total=n)
        stand_ins = stand_in_maps(
            *scored,
            **how,
            other=None if other is None else at_temperature(other.network, other.temperature),
            on_images=lambda done, of: progress.update(maps, completed=done, total=of),
        )
        task = progress.add_task(f"scoring {subject.title}", total=n)
        return evaluate_faithfulness(
            *scored,
            **how,
            masks=None if split.masks is None else torch.as_tensor(split.masks[:n]),
            stand_ins=stand_ins,
            on_images=lambda done, of: progress.update(task, completed=done, total=of),
        )


def _normalized(dataset: Dataset, images: Any, device: torch.device) -> torch.Tensor:
    import torch

    from study.data.augment import normalize

    return normalize(torch.as_tensor(images).to(device), dataset.mean, dataset.std)


def _milliseconds(
    subject: Subject, dataset: Dataset, split: Split, methods: Sequence[str], device: torch.device
) -> dict[str, float]:
    """Per image, of making each method's maps, on a few images."""
    import torch

    from study.faithfulness.cost import milliseconds_per_image

    x = _normalized(dataset, split.images[:8], device)
    return milliseconds_per_image(subject.network, x, torch.as_tensor(split.labels[:8]).to(device), methods)


def _sanity(
    subject: Subject, dataset: Dataset, split: Split, methods: Sequence[str], device: torch.device
) -> list[str]:
    import torch

    from study.faithfulness import table
    from study.faithfulness.randomization import randomization_check

    x = _normalized(dataset, split.images[:_SANITY_IMAGES], device)
    classes = torch.as_tensor(split.labels[:_SANITY_IMAGES]).to(device)
    return table.randomization(subject.title, *randomization_check(subject.network, x, classes, methods), len(x))


def _write(
    out: Path, subjects: Sequence[Subject], reports: Sequence[FaithfulnessReport], args: argparse.Namespace
) -> None:
    """Per-image scores as Parquet, everything else as JSON, in which null is a number that is not finite."""
    from study.faithfulness.report import write_per_image

    document = []
    for i, (subject, report) in enumerate(zip(subjects, reports, strict=True)):
        write_per_image(out / f"per_image_{i}.parquet", report.per_image)
        document.append(
            {
                "network": subject.name,
                "config": subject.card["config"],
                "split": args.split,
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

    from study.faithfulness.gallery import draw_networks

    images, labels = split.images[list(numbers)], torch.as_tensor(split.labels[list(numbers)]).to(device)
    networks = {subject.title: subject.network for subject in subjects}
    draw_networks(file, networks, images, _normalized(dataset, images, device), labels, dataset.classes, methods)


if __name__ == "__main__":
    sys.exit(run_command(main))
