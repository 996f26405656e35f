"""From the ledger's artifacts to a network that is proven to be the one that was trained."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.export.picks import folder_name
from study import names
from study.errors import ArtifactError, StudyError

if TYPE_CHECKING:
    from torch import nn

    from analysis.table import StudyTable
    from study.config import TrialConfig
    from study.data import Dataset
    from study.ledger import Ledger

LOGIT_TOLERANCE = 1e-5  # largest |difference| from the logits noted at training time; both on the CPU in float32


@dataclass(frozen=True)
class Proven:
    """A re-loaded network whose logits are those of its training: table row, folder, card, data.

    ``folder`` holds its weights and card. Networks on the same images share ``dataset``.
    """

    row: int
    folder: Path
    network: nn.Module
    card: dict[str, Any]
    config: TrialConfig
    dataset: Dataset
    max_logit_difference: float


def fetch_networks(
    ledger: Ledger, study: StudyTable, rows: Sequence[int], part: Path, source: str | None
) -> list[Proven]:
    """Download the networks of ``rows`` to folders in ``part`` and prove each.

    Artifacts are data, whoever could write to their store: hashes are compared before anything is parsed, weights
    are safetensors, nothing is unpickled. Raises :class:`ArtifactError` where one is missing or damaged, or its logits
    differ from those of training by more than ``LOGIT_TOLERANCE``, and :class:`InputError` for other data than it was
    trained on.
    """
    opened: dict[str, Dataset] = {}
    return [_fetch(ledger, study, row, part, source, opened) for row in rows]


def _fetch(
    ledger: Ledger, study: StudyTable, row: int, part: Path, source: str | None, opened: dict[str, Dataset]
) -> Proven:
    from study.config import TrialConfig
    from study.data import open_card_data
    from study.training.checkpoint import load_model

    trial = study.column("trial")[row]
    folder = part / folder_name(study, row)
    folder.mkdir(parents=True)
    downloaded = ledger.download_network(study.column("run_id")[row], part / "download")
    for file in (names.MODEL_FILE, names.MODEL_CONFIG_FILE):
        os.replace(downloaded / file, folder / file)
    shutil.rmtree(part / "download")
    try:
        network, card = load_model(folder)
        key = json.dumps([card["config"]["data"], card["data_fingerprint"]], sort_keys=True)
        if key in opened:
            config, dataset = TrialConfig.from_dict(dict(card["config"])), opened[key]
        else:
            config, dataset = open_card_data(card, source)
            opened[key] = dataset
        difference = largest_logit_difference(network, card, dataset)
    except StudyError as error:
        if error.file is not None and error.file.is_relative_to(folder):
            error.file = error.file.relative_to(folder)
        raise type(error)(str(error), key=f"trial {trial}") from None
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ArtifactError(
            f"trial {trial}: {names.MODEL_CONFIG_FILE} among its artifacts is not one of this program ({what[:200]})"
        ) from None
    if not difference <= LOGIT_TOLERANCE:
        raise ArtifactError(
            f"trial {trial}: the re-loaded network's logits differ by {difference:.2g} from those "
            f"of training, more than {LOGIT_TOLERANCE:g}; nothing was exported (another torch version or machine type?)"
        )
    return Proven(row, folder, network, card, config, dataset, difference)


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
