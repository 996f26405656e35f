"""Small pictures of saliency: every shown network's maps on the same validation images, as PNG in the page itself."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from study.errors import StudyError

if TYPE_CHECKING:
    from analysis.table import StudyTable
    from study.data import Dataset
    from study.ledger import Ledger

IMAGES = 6  # the first of so many different classes: nobody chose them by how they look
METHODS = 2  # of the study's own


@dataclass(frozen=True)
class Strip:
    """One network: per method a strip of its maps (data URI), and what it says of every image."""

    maps: dict[str, str]
    says: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """``images``: strip of the images themselves (data URI); ``titles``: their classes; by row of the table ``strips``,
    and ``missing``, why there is none."""

    images: str
    titles: tuple[str, ...]
    strips: dict[int, Strip]
    missing: dict[int, str]


def make_gallery(ledger: Ledger, study: StudyTable, rows: Sequence[int], source: str | None) -> Gallery | str:
    """Maps of the networks in ``rows``; where not one of them can be had, why. ``source``: where the images are."""
    import torch

    strips: dict[int, Strip] = {}
    missing: dict[int, str] = {}
    chosen: tuple[Dataset, np.ndarray[Any, Any]] | None = None
    for row in rows:
        try:
            with tempfile.TemporaryDirectory() as folder:
                network, card = _load(ledger, study.column("run_id")[row], Path(folder))
            if chosen is None or chosen[0].fingerprint != card["data_fingerprint"]:
                from study.data import open_card_data

                dataset = open_card_data(card, source)[1]
                chosen = dataset, _first_of_classes(dataset.validation.labels)
            with torch.no_grad():
                strips[row] = _strip(network, card, *chosen)
        except (StudyError, OSError) as error:
            missing[row] = str(error)
    if chosen is None:
        return next(iter(missing.values()), "no network to show")
    dataset, at = chosen
    images = np.asarray(dataset.validation.images[at])
    titles = tuple(str(dataset.classes[label]) for label in dataset.validation.labels[at])
    return Gallery(_png(images.transpose(0, 2, 3, 1)), titles, strips, missing)


def _load(ledger: Ledger, run_id: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    from study.training.checkpoint import load_model

    return load_model(ledger.download_network(run_id, folder))


def _first_of_classes(labels: Any) -> np.ndarray[Any, Any]:
    """The first image of each of the first IMAGES classes that come up."""
    _, first = np.unique(np.asarray(labels), return_index=True)
    return np.sort(first)[:IMAGES]


def _strip(network: Any, card: dict[str, Any], dataset: Dataset, at: np.ndarray[Any, Any]) -> Strip:
    """Explains the class that the study's protocol explains: the true one, or the one that the network says.

    Maps and probabilities are those at the network's calibrated temperature, at which faithfulness is measured; of a
    card that has none, those of the network as it is.
    """
    import torch

    from study.data.augment import normalize
    from study.faithfulness.calibration import at_temperature, recorded_temperature
    from study.faithfulness.gallery import overlaid
    from study.faithfulness.protocols import PROTOCOLS
    from study.saliency import distinct_methods, saliency_maps

    images = np.asarray(dataset.validation.images[at])
    labels = torch.as_tensor(dataset.validation.labels[at]).long()
    evaluation = card["config"]["evaluation"]
    methods = distinct_methods(evaluation["methods"])[:METHODS]
    x = normalize(torch.as_tensor(images), dataset.mean, dataset.std)
    of_label = PROTOCOLS[evaluation["protocol"]].class_choice == "label"
    found = saliency_maps(
        at_temperature(network, recorded_temperature(card) or 1.0), x, labels if of_label else None, methods
    )
    chance, said = found.logits.softmax(1).max(1)
    says = tuple(
        f"{dataset.classes[k]} {100 * p:.0f}\N{NO-BREAK SPACE}%"
        for k, p in zip(said.tolist(), chance.tolist(), strict=True)
    )
    return Strip({m: _png(overlaid(images, found.maps[m])) for m in methods}, says)


def _png(images_NHWC: np.ndarray[Any, Any]) -> str:
    """Images side by side as a PNG data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(images_NHWC), axis=1)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
