"""What a protocol's identity stands for. What fails here has changed what a score means, and not said so."""

from __future__ import annotations

import dataclasses

from study import metrics
from study.faithfulness import calibration, controls, deletion, grid
from study.faithfulness.protocols import PROTOCOLS

#: Where one of these changes, raise all of ``metrics.PROTOCOL_VERSIONS``, then write down here
#: what the new version means. Studies scored before are scored again by ``python -m study.rescore``.
VERSION = 2
MEANS = {
    "faithfulness": "deletion_agreement",
    "cells": 4,
    "other maps": 8,
    "halves": 16,
    "temperature bounds": (1 / 20, 20.0),
}
MASKING = {
    "paper": ("label", 5, 5.0, 8, "colour"),
    "rise": ("predicted", 11, 5.0, 1, "colour"),
    "dense": ("label", 5, 5.0, 0.25, "colour"),
    "blur": ("label", 5, 5.0, 8, "blurred"),
}


def test_what_the_versions_mean() -> None:
    assert set(metrics.PROTOCOL_VERSIONS.values()) == {VERSION}
    assert {
        "faithfulness": metrics.FAITHFULNESS_IS.name,
        "cells": grid.CELLS,
        "other maps": controls.OTHERS,
        "halves": deletion.random_halves(1, 0).shape[1],
        "temperature bounds": calibration.BOUNDS,
    } == MEANS
    fields = ("class_choice", "blur_kernel", "blur_sigma", "step_rows", "hidden")
    assert {name: tuple(getattr(p, field) for field in fields) for name, p in PROTOCOLS.items()} == MASKING
    assert {f.name for f in dataclasses.fields(PROTOCOLS["paper"])} == {*fields, "name"}


def test_the_room_of_all_names_knows_the_identities() -> None:
    assert {p.identity for p in PROTOCOLS.values()} == set(map(metrics.protocol_identity, metrics.PROTOCOLS))


def test_what_is_a_score() -> None:
    of_maps = (metrics.FAITHFULNESS, *metrics.CANDIDATES, metrics.ALIGNMENT, metrics.UNDEFINED_SHARE)
    names = [m.ledger_name for m in of_maps] + [metrics.TEMPERATURE, metrics.saliency_metric("grad_cam", "insertion")]
    assert all(map(metrics.is_score, names))
    of_training = (metrics.ACCURACY.ledger_name, metrics.LOSS.ledger_name, metrics.TRAIN_LOSS, metrics.EPOCH_SECONDS)
    assert not any(map(metrics.is_score, (*of_training, metrics.ACCURACY_ERROR, "epoch")))
