"""The final scores: on the test split, opened once per export and network, and noted before it is."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from study import metrics

if TYPE_CHECKING:
    from torch import nn

    from analysis.export.fetch import Proven
    from analysis.table import StudyTable
    from study.config import TrialConfig
    from study.data import Dataset
    from study.ledger import Ledger
    from study.storage.storage import Storage

_PURPOSE = "final evaluation at export"


def open_and_score(
    ledger: Ledger, storage: Storage, study: StudyTable, proven: Proven, temperature: float
) -> dict[str, Any]:
    """Note the look at the test split in the study's folder and on its run, then score the network there.

    ``temperature``: :func:`temperature_of` the network. Raises :class:`StudyError` where the look cannot be noted: the
    split then stays closed.
    """
    from study.storage.test_log import log_opening

    trial, run_id = study.column("trial")[proven.row], study.column("run_id")[proven.row]
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    purpose = f"{_PURPOSE} of trial {trial}"
    log_opening(storage, study.name, {"when": when, "trial": trial, "run_id": run_id, "purpose": purpose})
    looks = ledger.log_test_opening(run_id, purpose, when)
    print(f"trial {trial}: scoring on the test split (look {looks} in this study)", file=sys.stderr)
    scores = final_scores(proven.network, proven.config, proven.dataset, temperature)
    return {**scores, "opened": when, "looks_in_study": looks, "data_fingerprint": proven.dataset.test_fingerprint}


def temperature_of(proven: Proven) -> float:
    """That of the network's card; where a card has none, fitted to the validation images that nothing is scored on."""
    from study.faithfulness import calibration

    reserved = proven.config.evaluation.calibration_images
    return calibration.temperature_of(proven.network, proven.dataset, reserved, proven.card)


def final_scores(network: nn.Module, config: TrialConfig, dataset: Dataset, temperature: float) -> dict[str, Any]:
    """Accuracy (%) on the whole test split; faithfulness under the study's own evaluation, on as many of its first
    images as ``evaluation.images`` says. Intervals are of 95 % over images: Wilson's for accuracy, bootstrap."""
    from study.data.labelled import LabelledImages
    from study.faithfulness import evaluate_faithfulness
    from study.faithfulness.statistics import image_scores, mean_with_interval, wilson
    from study.networks.state import default_device
    from study.training.accuracy import classify

    network = network.to(default_device())
    test = LabelledImages.of(dataset, dataset.test())
    found = classify(network, test)
    report = evaluate_faithfulness(
        network, test[: config.evaluation.images], config.evaluation, temperature=temperature
    )
    by_image = image_scores(report.per_image)[metrics.FAITHFULNESS.name]
    interval = mean_with_interval(by_image)
    return {
        "accuracy": found.accuracy,
        "accuracy_interval": list(wilson(found.accuracy, found.images)),
        "accuracy_images": found.images,
        "faithfulness": report.faithfulness,
        "faithfulness_interval": [interval.low, interval.high],
        "faithfulness_images": len(by_image),
        "alignment": report.alignment,
        "protocol": report.protocol,
        "details": report.metrics(),
    }
