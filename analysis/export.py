"""``python -m analysis.export STUDY --out DIR``: the front's networks as folders, proven to be what was measured."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import metrics
from study.errors import InputError, run_command

if TYPE_CHECKING:
    from torch import nn

    from analysis.table import StudyTable
    from study.config import TrialConfig
    from study.data import Dataset
    from study.ledger import Ledger

MANIFEST_FILE = "manifest.json"
LOGIT_TOLERANCE = 1e-5  # largest |difference| from the logits noted at training time; both on the CPU in float32
_BATCH = 500
_PURPOSE = "final evaluation at export"


def parser() -> argparse.ArgumentParser:
    from analysis.load import add_study_arguments

    parse = argparse.ArgumentParser(
        prog="python -m analysis.export",
        description="Write every Pareto-optimal network of a study to a folder: weights, what is needed to use them, "
        "validation scores and the final scores on the test split (every look at which is noted in the ledger).",
    )
    add_study_arguments(parse)
    parse.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make, or to replace as a whole"
    )
    parse.add_argument("--data", metavar="SRC", help="where the study's images are on this machine (default: as then)")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    out: Path = args.out.expanduser().absolute()
    check_replaceable(out, args.study)
    from analysis.load import ledger_from, load_study
    from analysis.pareto import front_mask
    from study.storage import Storage

    ledger, _ = ledger_from(args)
    study = load_study(ledger)
    rows = [int(i) for i in front_mask(study).nonzero()[0]]
    if not rows:
        raise InputError(f"study {args.study!r} has no complete trial, so nothing to export; continue it first")
    Storage(out.parent).check_writable()
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        proven = [fetch_network(ledger, study, row, part, args.data) for row in rows]  # all, before any test image
        exported = [score_network(ledger, study, network) for network in proven]
        manifest = {
            "study": args.study,
            "fingerprint": ledger.record().fingerprint,
            "exported": datetime.now(UTC).isoformat(timespec="seconds"),
            "objectives": {m.name: m.direction for m in study.objectives},
            "networks": exported,
        }
        _write_json(part / MANIFEST_FILE, manifest)
        replace_folder(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for entry in exported:
        scores = entry["test_scores"]
        print(
            f"{entry['folder']}  test accuracy {scores['accuracy']:.2f} %  test faithfulness "
            f"{scores['faithfulness']:+.2f} pp over random maps ({scores['protocol']}, {scores['faithfulness_images']} "
            f"images)  max |Δ logit| {entry['max_logit_difference']:.1e}"
        )
    print(f"results  {out}", file=sys.stderr)
    code = "from study.training.checkpoint import load_model; "
    code += f"network, card = load_model(Path({str(out / exported[0]['folder'])!r}))"
    print(f"next     python -c \"from pathlib import Path; {code}; print(card['test_scores'])\"", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class Proven:
    """A re-loaded network whose logits are those of its training: table row, folder, card, data."""

    row: int
    folder: Path
    network: nn.Module
    card: dict[str, Any]
    config: TrialConfig
    dataset: Dataset
    max_logit_difference: float


def fetch_network(ledger: Ledger, study: StudyTable, row: int, part: Path, source: str | None) -> Proven:
    """Download one network's files to its folder in ``part`` and prove that it is the one that was trained.

    Raises :class:`InputError`: artifact missing or damaged, other data than it was trained on, logits that differ
    from those of training by more than ``LOGIT_TOLERANCE``.
    """
    from study.training.checkpoint import load_model

    folder = part / folder_name(study, row)
    folder.mkdir(parents=True)
    for file in (metrics.MODEL_FILE, metrics.MODEL_CONFIG_FILE):
        artifact = f"{metrics.CHECKPOINT_ARTIFACTS}/{file}"
        os.replace(ledger.download(study.column("run_id")[row], artifact, part / "download"), folder / file)
    shutil.rmtree(part / "download")
    network, card = load_model(folder)
    from study.data import open_card_data

    config, dataset = open_card_data(card, source)
    difference = largest_logit_difference(network, card, dataset)
    if not difference <= LOGIT_TOLERANCE:
        raise InputError(
            f"trial {study.column('trial')[row]}: the re-loaded network's logits differ by {difference:.2g} from those "
            f"of training, more than {LOGIT_TOLERANCE:g}; nothing was exported (another torch version or machine type?)"
        )
    return Proven(row, folder, network, card, config, dataset, difference)


def score_network(ledger: Ledger, study: StudyTable, proven: Proven) -> dict[str, Any]:
    """Note the look at the test split in the ledger, score the network there, complete its card; its manifest entry."""
    trial, run_id = study.column("trial")[proven.row], study.column("run_id")[proven.row]
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    looks = ledger.log_test_opening(run_id, f"{_PURPOSE} of trial {trial}", when)
    print(f"trial {trial}: scoring on the test split (look {looks} in this study)", file=sys.stderr)
    scores = final_scores(proven.network, proven.config, proven.dataset)
    added = {
        "study": study.name,
        "trial": trial,
        "run_id": run_id,
        "test_scores": scores,
        "test_opened": when,
        "max_logit_difference": proven.max_logit_difference,
    }
    _write_json(proven.folder / metrics.MODEL_CONFIG_FILE, {**proven.card, **added})
    return {
        "folder": proven.folder.name,
        "trial": trial,
        "seed": study.column("seed")[proven.row],
        "run_id": run_id,
        "network": proven.config.network,
        "reg_weight": proven.config.reg_weight,
        "validation_scores": {m.name: study.column(m.name)[proven.row] for m in study.objectives},
        "test_scores": scores,
        "max_logit_difference": proven.max_logit_difference,
        "sha256": {
            f: hashlib.sha256((proven.folder / f).read_bytes()).hexdigest()
            for f in (metrics.MODEL_FILE, metrics.MODEL_CONFIG_FILE)
        },
    }


def folder_name(study: StudyTable, row: int) -> str:
    """``trial-0007``; with the seed where the trial has several."""
    trials = study.column("trial")
    name = f"trial-{trials[row]:04d}"
    return name if trials.count(trials[row]) == 1 else f"{name}-seed-{study.column('seed')[row]}"


def largest_logit_difference(network: nn.Module, card: Mapping[str, Any], dataset: Dataset) -> float:
    """Largest |logit difference| on the validation images whose logits the card holds; inf for other shapes."""
    import torch

    from study.data.augment import normalize

    images_NCHW = torch.as_tensor(dataset.validation.images[card["check"]["images"]])
    expected_NC = torch.tensor(card["check"]["logits"])
    with torch.no_grad():
        logits_NC = network(normalize(images_NCHW, card["mean"], card["std"]))
    if logits_NC.shape != expected_NC.shape or not len(logits_NC):
        return float("inf")
    return float((logits_NC - expected_NC).abs().max())


def final_scores(network: nn.Module, config: TrialConfig, dataset: Dataset) -> dict[str, Any]:
    """Accuracy (%) on the whole test split; faithfulness under the study's own evaluation, on as many of its first
    images as ``evaluation.images`` says."""
    import torch

    from study.data.augment import normalize
    from study.faithfulness import evaluate_faithfulness

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device).eval()
    test = dataset.test()
    correct = 0
    with torch.no_grad():
        for start in range(0, len(test.labels), _BATCH):
            images_NCHW = torch.as_tensor(test.images[start : start + _BATCH]).to(device)
            labels_N = torch.as_tensor(test.labels[start : start + _BATCH]).to(device)
            predicted_N = network(normalize(images_NCHW, dataset.mean, dataset.std)).argmax(1)
            correct += int((predicted_N == labels_N).sum())
    n = min(config.evaluation.images or len(test.labels), len(test.labels))
    report = evaluate_faithfulness(
        network,
        torch.as_tensor(test.images[:n]),
        torch.as_tensor(test.labels[:n]),
        mean=dataset.mean,
        std=dataset.std,
        config=config.evaluation,
        device=device,
    )
    return {
        "accuracy": 100 * correct / len(test.labels),
        "accuracy_images": len(test.labels),
        "faithfulness": report.faithfulness,
        "faithfulness_images": n,
        "alignment": report.alignment,
        "protocol": report.protocol,
        "details": report.metrics(),
    }


def check_replaceable(out: Path, study: str) -> None:
    """Only an earlier export of the same study is ever replaced. Raises :class:`InputError`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    hint = "choose another --out"
    if not out.is_dir():
        raise InputError(f"--out {out}: is a file; {hint}")
    try:
        manifest = json.loads((out / MANIFEST_FILE).read_text())
        owner, known = manifest["study"], {MANIFEST_FILE, *(n["folder"] for n in manifest["networks"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"--out {out}: holds other files, which an export would replace; {hint}") from None
    if owner != study:
        raise InputError(f"--out {out}: holds the export of study {owner!r}; {hint}")
    foreign = sorted(p.name for p in out.iterdir() if p.name not in known)
    if foreign:
        raise InputError(f"--out {out}: {foreign[0]} is not part of the export that it holds; move it or {hint}")


def replace_folder(part: Path, out: Path) -> None:
    """Put ``part`` in the place of ``out`` by renaming: a kill leaves the old folder, the new one or none."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(part, out)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
