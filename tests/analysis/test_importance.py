"""Importance: what was put in is found, in the direction of the objective; chance and too little are said to be so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_studies import MakeStudy, invented_table

from analysis.importance import main
from analysis.load import load_study
from analysis.statistics.front import eligible
from analysis.statistics.importance import FRONT, _as_trials, importance
from benchmarks.synthetic import write_runs
from study import names
from study.ledger import Ledger, default_tracking_uri


@pytest.fixture
def large(storage: Path) -> Ledger:
    ledger = Ledger(default_tracking_uri(storage), "large")
    write_runs(ledger, 0, 200)
    return ledger


def test_what_was_put_in_is_found(large: Ledger) -> None:
    study = load_study(large)
    found = importance(study, eligible(study))
    assert list(found.shares) == ["accuracy", "faithfulness", FRONT] and found.trials == 140
    assert max(found.shares["accuracy"], key=found.shares["accuracy"].__getitem__) == "lr"
    assert max(found.shares["faithfulness"], key=found.shares["faithfulness"].__getitem__) == "reg_weight"
    assert found.sure("accuracy", "lr") and found.sure("faithfulness", "reg_weight")
    assert not found.sure("faithfulness", "weight_decay")
    for shares in found.shares.values():
        assert sum(shares.values()) == pytest.approx(1)


def test_the_direction_is_respected() -> None:
    """Accuracy is good in a narrow range of one param and bad in a narrow range of the other: only the first counts."""
    rng = np.random.default_rng(1)
    runs = []
    for _ in range(150):
        a, b = rng.uniform(0, 1, 2)
        accuracy = 50 + 40 * (abs(a - 0.5) < 0.05) - 40 * (abs(b - 0.5) < 0.05) + rng.normal()
        runs.append((0, {"a": float(a), "b": float(b)}, {"val/accuracy": accuracy, "val/loss": -accuracy}))
    study = invented_table(runs, {"accuracy": "maximize", "loss": "minimize"})
    found = importance(study, eligible(study))
    for target in ("accuracy", "loss", FRONT):
        assert found.shares[target]["a"] > 0.8, target


def test_a_range_with_zero_is_a_category_and_a_number(large: Ledger) -> None:
    study = load_study(large)
    rows = np.flatnonzero(eligible(study))
    in_memory, params = _as_trials(study, rows)
    assert set(params) == {"network", "lr", "reg_weight", "reg_error", "weight_decay"}
    for trial, row in zip(in_memory.trials, rows, strict=True):
        weight = study.column("reg_weight")[row]
        assert trial.params["reg_weight_is_zero"] == (weight == 0)
        assert trial.params.get("reg_weight", 0.0) == weight
        assert ("reg_error" in trial.params) == (weight > 0)


@pytest.mark.parametrize("n", [0, 3])
def test_too_few_trials_say_so(
    n: int, make_study: MakeStudy, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study([(names.COMPLETE, {"lr": 0.1 * (i + 1)}, {"val/accuracy": 1.0 * i}, []) for i in range(n)])
    assert main(["demo", "--storage", str(storage), "--json"]) == 0
    printed = capsys.readouterr().out
    assert "cannot tell" in printed
    assert json.loads(printed.splitlines()[-1])["importance"] == {}


@pytest.mark.slow
def test_the_command_prints_and_draws(large: Ledger, storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["large", "--storage", str(storage), "--json"]) == 0
    printed = capsys.readouterr()
    last = json.loads(printed.out.splitlines()[-1])
    assert last["lambda"]["faithfulness"]["reference"] == "λ = 0"
    assert "raises faithfulness" in last["lambda"]["faithfulness"]["sentence"]
    for name in ("importance", "lambda"):
        assert (storage / "large" / "analysis" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (storage / "large" / "analysis" / f"{name}.svg").read_bytes()
