"""The stored networks of a study's trials, from the ledger or from the trials' own folders, and their images."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from study import names
from study.config import TrialConfig
from study.data import Dataset, open_card_data
from study.errors import ArtifactError, InputError
from study.ledger import Ledger, TrialRecord
from study.networks import build
from study.storage.storage import Storage, trial_folder
from study.training.checkpoint import load_checkpoint, load_model, restore


@dataclass(frozen=True)
class StoredNetwork:
    """A trial's network after ``epoch``. ``card`` is that of a complete trial's model, else a checkpoint's header."""

    network: nn.Module
    card: dict[str, Any]
    epoch: int


class NetworkOpener:
    """Finds the networks of trials. Trials with the same images share one opened data set."""

    def __init__(self, ledger: Ledger, storage: Storage, data: str | None) -> None:
        self._ledger = ledger
        self._storage = storage
        self._data = data
        self._datasets: dict[str, Dataset] = {}

    def network(self, record: TrialRecord) -> StoredNetwork | None:
        """A trial's network; None where it is not complete and its checkpoint is of an epoch without scores.

        Raises :class:`ArtifactError` where the network of a complete trial is missing.
        """
        folder = trial_folder(self._storage, self._ledger.study, record.trial)
        if record.state == names.COMPLETE:
            return self._complete(record, folder)
        return self._unfinished(record, folder / names.CHECKPOINT_FILE)

    def images(self, card: dict[str, Any]) -> tuple[TrialConfig, Dataset]:
        """The configuration of a training, and its images. Raises :class:`InputError` where they are missing."""
        key = json.dumps([card["config"]["data"], card["data_fingerprint"]], sort_keys=True)
        if key not in self._datasets:
            self._datasets[key] = open_card_data(card, self._data)[1]
        return TrialConfig.from_dict(dict(card["config"])), self._datasets[key]

    def _complete(self, record: TrialRecord, folder: Path) -> StoredNetwork:
        try:
            network, card = self._downloaded(record)
        except (ArtifactError, InputError) as error:  # InputError: a network that this version does not have
            if not (folder / names.MODEL_CONFIG_FILE).exists():
                raise ArtifactError(
                    f"trial {record.trial} is complete and its network cannot be had: {error}; bring it back, or "
                    "delete its run in MLflow"
                ) from None
            network, card = load_model(folder)
        return StoredNetwork(network, card, int(record.metrics["epoch"]))

    def _downloaded(self, record: TrialRecord) -> tuple[nn.Module, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            return load_model(self._ledger.download_network(record.run_id, Path(folder)))

    def _unfinished(self, record: TrialRecord, file: Path) -> StoredNetwork | None:
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
        return StoredNetwork(network.eval(), checkpoint.header, epoch)
