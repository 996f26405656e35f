"""Stored networks of a study scored again: found, scored, put beside the study, then into the ledger.

A trial is switched to the new protocol by the ledger's last write alone, after its files: killed at any moment, what
was scored is found in the folder ``stage`` and is not scored again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from study import metrics, names
from study.config import TrialConfig
from study.data import Dataset, open_card_data
from study.errors import InputError
from study.faithfulness import score_network
from study.faithfulness.report import write_per_image
from study.ledger import Ledger, SupersededError, TrialRecord
from study.networks import build
from study.networks.state import default_device
from study.storage.atomic import write_atomically
from study.storage.storage import Storage, trial_folder
from study.training.checkpoint import load_checkpoint, load_model, restore

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
    """Score the networks of these trials and switch each to ``protocol``; how many have none.

    Raises :class:`InputError` where the network of a complete trial, or its images, cannot be had, and where a trial is
    taken up by a session meanwhile.
    """
    columns = (
        TextColumn("scoring trial {task.fields[trial]}"),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.total:.0f} trials"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    opener = _Opener(ledger, storage, data)
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
                raise InputError(
                    f"trial {record.trial} has been taken up by a session of the study; let that end, then type the "
                    "same command"
                ) from None
            shutil.rmtree(folder)
            lost += not scores
        progress.update(task, completed=len(todo), done=len(todo))
    return lost


@dataclass(frozen=True)
class _Network:
    """A trial's stored network, as it was after ``epoch``; ``card``: a model's card, or a checkpoint's header."""

    network: nn.Module
    card: dict[str, Any]
    epoch: int


class _Opener:
    """Finds the networks of trials, and opens their images once."""

    def __init__(self, ledger: Ledger, storage: Storage, data: str | None) -> None:
        self._ledger = ledger
        self._storage = storage
        self._data = data
        self._datasets: dict[str, Dataset] = {}

    def network(self, record: TrialRecord) -> _Network | None:
        """None for a trial that is not complete and has no checkpoint of an epoch after which it was scored."""
        folder = trial_folder(self._storage, self._ledger.study, record.trial)
        if record.state == names.COMPLETE:
            return self._complete(record, folder)
        return self._unfinished(record, folder / names.CHECKPOINT_FILE)

    def images(self, card: dict[str, Any]) -> tuple[TrialConfig, Dataset]:
        """The configuration of a training, and its images."""
        key = json.dumps([card["config"]["data"], card["data_fingerprint"]], sort_keys=True)
        if key not in self._datasets:
            self._datasets[key] = open_card_data(card, self._data)[1]
        return TrialConfig.from_dict(dict(card["config"])), self._datasets[key]

    def _complete(self, record: TrialRecord, folder: Path) -> _Network:
        try:
            network, card = self._downloaded(record)
        except InputError as error:
            if not (folder / names.MODEL_CONFIG_FILE).exists():
                raise InputError(
                    f"trial {record.trial} is complete and its network cannot be had: {error}; bring it back, or "
                    "delete its run in MLflow"
                ) from None
            network, card = load_model(folder)
        return _Network(network, card, int(record.metrics["epoch"]))

    def _downloaded(self, record: TrialRecord) -> tuple[nn.Module, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            for file in (names.MODEL_FILE, names.MODEL_CONFIG_FILE):
                artifact = f"{names.CHECKPOINT_ARTIFACTS}/{file}"
                self._ledger.download(record.run_id, artifact, Path(folder))
            return load_model(Path(folder) / names.CHECKPOINT_ARTIFACTS)

    def _unfinished(self, record: TrialRecord, file: Path) -> _Network | None:
        self._storage.pull(file)
        if not file.exists():
            return None
        checkpoint = load_checkpoint(file)
        config, epoch = TrialConfig.from_dict(checkpoint.header["config"]), len(checkpoint.header["history"])
        if epoch not in (*config.rungs, config.epochs) or epoch > record.metrics["epoch"]:
            return None
        with torch.random.fork_rng([]):
            network = build(config.network, checkpoint.header["n_classes"])
        restore(checkpoint, network)
        return _Network(network.eval(), checkpoint.header, epoch)


def _score(
    opener: _Opener, record: TrialRecord, protocol: str, folder: Path, tell: Callable[[int, int], None]
) -> Scores:
    """Score a trial's network and keep what is found in ``folder``, which appears as a whole."""
    found = opener.network(record)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    scores: Scores = {}
    if found is not None:
        config, dataset = opener.images(found.card)
        report = score_network(found.network.to(default_device()), dataset, config.evaluation, tell)
        scores = {found.epoch: report.metrics()}
        if record.state == names.COMPLETE:
            kept = {k: v for k, v in found.card["scores"].items() if not metrics.is_score(k)}
            made = {
                "scores": {**kept, **report.metrics()},
                "protocol": report.protocol,
                "temperature": report.temperature,
            }
            card = json.dumps({**found.card, **made}, indent=2) + "\n"
            write_atomically(part / names.MODEL_CONFIG_FILE, card.encode())
            write_per_image(part / names.PER_IMAGE_FILE, report.per_image)
    kept_as = json.dumps({"run_id": record.run_id, "protocol": protocol, "scores": scores})
    write_atomically(part / _SCORES_FILE, kept_as.encode())
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(part, folder)
    return scores


def _staged(folder: Path, record: TrialRecord, protocol: str) -> Scores | None:
    """What a command that was cut off had found for this very run."""
    try:
        kept = json.loads((folder / _SCORES_FILE).read_text())
    except (OSError, ValueError):
        return None
    if (kept["run_id"], kept["protocol"]) != (record.run_id, protocol):
        return None
    return {int(epoch): scores for epoch, scores in kept["scores"].items()}


def _replace_copies(folder: Path, files: Sequence[Path]) -> None:
    """A trial keeps in its own folder what it gave to the ledger."""
    for file in files:
        if (folder / file.name).exists():
            write_atomically(folder / file.name, file.read_bytes())
