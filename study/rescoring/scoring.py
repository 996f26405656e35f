"""Scores a study's stored networks again: into the folder ``stage`` first, then into the ledger, trial by trial.

The last write to the ledger switches a trial to the new protocol, after its files. A command that was killed is typed
again: it finds in ``stage`` what was scored already.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from study import metrics, names
from study.errors import UnavailableError
from study.faithfulness import score_network
from study.faithfulness.report import FaithfulnessReport, write_per_image
from study.ledger import Ledger, SupersededError, TrialRecord
from study.networks.state import default_device
from study.rescoring.stored_networks import NetworkOpener
from study.storage.atomic import replacing, write_atomically
from study.storage.storage import Storage, trial_folder

_SCORES_FILE = "scores.json"
_FILES = (names.MODEL_CONFIG_FILE, names.PER_IMAGE_FILE)  # replaced; the weights stay

Scores = dict[int, dict[str, float]]  # epoch -> ledger names and values


def rescore(
    ledger: Ledger,
    storage: Storage,
    todo: Sequence[TrialRecord],
    protocol: str,
    stage: Path,
    data: str | None = None,
) -> int:
    """Score the networks of these trials and switch each to ``protocol``; how many have no network.

    ``data``: where the images are on this machine. Raises :class:`StudyError` where the network of a complete trial or
    its images are missing, and where a session of the study continues a trial meanwhile.
    """
    columns = (
        TextColumn("scoring trial {task.fields[trial]}"),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.total:.0f} trials"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    opener = NetworkOpener(ledger, storage, data)
    lost = 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(todo), trial="", done=0)
        for i, record in enumerate(todo):
            progress.update(task, completed=i, trial=record.trial, done=i)

            def tell(done: int, of: int, before: int = i) -> None:
                progress.update(task, completed=before + done / of)

            folder = stage / f"{record.trial:04d}"
            scores = _staged(folder, record, protocol)
            if scores is None:
                scores = _score(opener, record, protocol, folder, tell)
            files = [folder / name for name in _FILES if (folder / name).exists()]
            _replace_copies(trial_folder(storage, ledger.study, record.trial), files)
            try:
                ledger.rescore(record, protocol, scores, files)
            except SupersededError:
                raise UnavailableError(
                    f"trial {record.trial} has been taken up by a session of the study; let that end, then type the "
                    "same command"
                ) from None
            shutil.rmtree(folder)
            lost += not scores
        progress.update(task, completed=len(todo), done=len(todo))
    return lost


def _score(
    opener: NetworkOpener, record: TrialRecord, protocol: str, folder: Path, tell: Callable[[int, int], None]
) -> Scores:
    """Score a trial's network and keep its scores and files in ``folder``, which appears as a whole."""
    found = opener.network(record)
    shutil.rmtree(folder, ignore_errors=True)  # of another run or protocol
    with replacing(folder) as part:
        part.mkdir()
        scores: Scores = {}
        if found is not None:
            config, dataset = opener.images(found.card)
            report = score_network(found.network.to(default_device()), dataset, config.evaluation, tell)
            scores = {found.epoch: report.metrics()}
            if record.state == names.COMPLETE:
                _write_card(part, found.card, report)
        kept = json.dumps({"run_id": record.run_id, "protocol": protocol, "scores": scores})
        write_atomically(part / _SCORES_FILE, kept.encode())
    return scores


def _write_card(folder: Path, card: Mapping[str, Any], report: FaithfulnessReport) -> None:
    """Write the network's card with the new scores, and its table of images."""
    kept = {name: value for name, value in card["scores"].items() if not metrics.is_score(name)}
    new = {
        "scores": {**kept, **report.metrics()},
        "protocol": report.protocol,
        "temperature": report.temperature,
    }
    write_atomically(folder / names.MODEL_CONFIG_FILE, (json.dumps({**card, **new}, indent=2) + "\n").encode())
    write_per_image(folder / names.PER_IMAGE_FILE, report.per_image)


def _staged(folder: Path, record: TrialRecord, protocol: str) -> Scores | None:
    """The scores that a command which was killed kept for this run; None where it kept none."""
    try:
        kept = json.loads((folder / _SCORES_FILE).read_text())
    except (OSError, ValueError):
        return None
    if (kept["run_id"], kept["protocol"]) != (record.run_id, protocol):
        return None
    return {int(epoch): scores for epoch, scores in kept["scores"].items()}


def _replace_copies(folder: Path, files: Sequence[Path]) -> None:
    """Bring the copies in the trial's own folder up to date, where it has them."""
    for file in files:
        if (folder / file.name).exists():
            write_atomically(folder / file.name, file.read_bytes())
