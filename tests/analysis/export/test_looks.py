"""Whoever opens the test split writes it into the study's book, whichever command and whichever copy of a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis import export
from study import evaluate, names
from study.ledger import Ledger
from study.storage.test_log import openings


@pytest.mark.slow
def test_every_look_is_in_the_book(study: Ledger, storage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export.main(["demo", "--out", str(out), "--storage", str(storage), "--formats", "safetensors"]) == 0
    options = ["--methods", "grad_cam", "--images", "5", "--gallery", "", "--storage", str(storage)]
    options += ["--out", str(tmp_path / "found")]
    for split, network in (("val", "demo/0"), ("test", "demo/0"), ("test", str(out / "trial-0000"))):
        assert evaluate.main([network, "--split", split, *options]) == 0
    looks = openings(storage / "demo" / names.TEST_LOG_FILE)
    assert [look["purpose"] for look in looks] == ["final evaluation at export of trial 0"] + 2 * ["study.evaluate"]
    assert len({look["run_id"] for look in looks}) == 1
    assert sum(t.startswith("study.test_opening/") for t in study.record().tags) == 2
