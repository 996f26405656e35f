"""The networks that a user names: folders of trained networks, or trials of a study as STUDY/TRIAL."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from study import names
from study.data import Dataset, Split, open_card_data
from study.errors import InputError
from study.faithfulness.calibration import temperature_of
from study.networks.state import default_device
from study.storage.storage import Storage, check_study_name
from study.storage.test_log import log_opening
from study.training.checkpoint import load_model

if TYPE_CHECKING:
    from study.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class NamedNetwork:
    """A network as the user named it. ``title``: its name in tables. ``run_id``: its run, where a ledger has one.

    ``temperature`` is its calibrated one, after :func:`shared_images`.
    """

    name: str
    title: str
    network: nn.Module
    card: dict[str, Any]
    run_id: str | None
    temperature: float = 1.0


class Networks:
    """Opens networks from folders and from the ledgers of the studies in a storage."""

    def __init__(self, storage: str, tracking_uri: str | None) -> None:
        self._storage, self._tracking_uri = storage, tracking_uri

    def open(self, named: Sequence[str]) -> list[NamedNetwork]:
        """On the default device. Raises :class:`StudyError` where there is no such network."""
        return [self._open(name, title) for name, title in zip(named, _titles(named), strict=True)]

    def test_split(self, dataset: Dataset, networks: Sequence[NamedNetwork]) -> Split:
        """Open the test split, after the look at it is noted in the study of every network that has one here."""
        storage = Storage.parse(self._storage)
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        for network in networks:
            entry = {"when": when, "run_id": network.run_id, "purpose": "study.evaluate"}
            if network.run_id is not None and not Path(network.name).exists():
                study = network.name.rpartition("/")[0]
                log_opening(storage, study, entry)
                looks = self._ledger(study).log_test_opening(network.run_id, "study.evaluate", when)
                print(f"{network.name}: scoring on the test split (look {looks} in this study)", file=sys.stderr)
            else:
                if network.run_id is not None and "study" in network.card:  # exported: is its study here?
                    study = str(network.card["study"])
                    check_study_name(f"{names.MODEL_CONFIG_FILE}: study", study)
                    if (storage.local / study).is_dir():
                        log_opening(storage, study, entry)
                print(f"{network.name}: scoring on the test split; choose nothing by what it shows", file=sys.stderr)
        return dataset.test()

    def _open(self, name: str, title: str) -> NamedNetwork:
        study, _, trial = name.rpartition("/")
        run_id = None
        if Path(name).exists() or not study or not trial.isdigit() or "/" in study:
            network, card = load_model(Path(name))
        else:
            ledger = self._ledger(study)
            runs = [r for r in ledger.trials() if r.trial == int(trial)]
            if not runs:
                raise InputError(f"{name}: study {study!r} has no trial {trial}")
            run_id = runs[0].run_id
            with tempfile.TemporaryDirectory() as folder:
                network, card = load_model(ledger.download_network(run_id, Path(folder)))
        return NamedNetwork(name, title, network.to(default_device()), card, run_id or card.get("run_id"))

    def _ledger(self, study: str) -> Ledger:
        from study.ledger import Ledger, default_tracking_uri  # networks in folders need no MLflow

        return Ledger(self._tracking_uri or default_tracking_uri(Storage.parse(self._storage).local), study)


def shared_images(networks: Sequence[NamedNetwork], source: str | None) -> tuple[list[NamedNetwork], Dataset, int]:
    """The networks at their temperatures, their images, and how many validation images are reserved for calibration.

    ``source``: where the images are on this machine. Raises :class:`InputError` where the networks' images differ.
    """
    opened = [open_card_data(network.card, source) for network in networks]
    if len({json.dumps({**n.card["config"]["data"], "source": n.card["data_fingerprint"]}) for n in networks}) > 1:
        raise InputError("the two networks were trained on different images; only equal images can be compared")
    dataset = opened[0][1]
    reserved = max(trained.evaluation.calibration_images for trained, _ in opened)
    return [
        dataclasses.replace(n, temperature=temperature_of(n.network, dataset, reserved, n.card)) for n in networks
    ], dataset, reserved  # fmt: skip


def _titles(named: Sequence[str]) -> list[str]:
    """The last part of each folder's path, where that tells the networks apart."""
    short = [Path(name).name if Path(name).exists() else name for name in named]
    return short if len(set(short)) == len(set(named)) else list(named)
