"""Who is on the front of a study, and the command on real ledgers."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from made_studies import MakeStudy, scored
from pyarrow import parquet

from analysis.load import load_study
from analysis.pareto import main
from analysis.statistics.front import eligible, front_mask
from study import names
from study.command import EXIT_BAD_INPUT, run_command


def test_only_complete_trials_with_finite_objectives_are_on_the_front(make_study: MakeStudy) -> None:
    rows = [
        (names.COMPLETE, {}, scored(50, 5), []),
        (names.COMPLETE, {}, scored(50, 5), []),
        (names.COMPLETE, {}, scored(40, 4), []),
        (names.COMPLETE, {}, scored(90, math.nan), []),
        (names.COMPLETE, {}, {"val/accuracy": 95.0}, []),
        (names.STOPPED, {}, scored(99, 9), []),
        (names.DIVERGED, {}, scored(99, 9), []),
        (names.FAILED, {}, scored(99, math.inf), []),
        (names.RUNNING, {}, scored(99, 9), []),
    ]
    study = load_study(make_study(rows))
    assert front_mask(study, eligible(study)).tolist() == [True, True] + [False] * 7
    assert study.counts() == {"running": 1, "complete": 5, "stopped": 1, "diverged": 1, "failed": 1}
    assert study.column("reason")[5:8] == ["because"] * 3


def test_a_minimised_objective_is_minimised(make_study: MakeStudy) -> None:
    rows = [
        (names.COMPLETE, {}, {"val/accuracy": 50, "val/loss": 2.0}, []),
        (names.COMPLETE, {}, {"val/accuracy": 50, "val/loss": 1.0}, []),
        (names.COMPLETE, {}, {"val/accuracy": 60, "val/loss": 3.0}, []),
    ]
    study = load_study(make_study(rows, objectives={"accuracy": "maximize", "loss": "minimize"}))
    assert front_mask(study, eligible(study)).tolist() == [False, True, True]


def test_one_scalarized_objective_has_its_best_trial_as_front(make_study: MakeStudy) -> None:
    rows = [(names.COMPLETE, {}, {"val/accuracy": a, "val/loss": b}, []) for a, b in ((50, 1), (60, 20), (55, 2))]
    both = {"accuracy": "maximize", "loss": "minimize"}
    study = load_study(make_study(rows, objectives=both, scalarize={"accuracy": 1.0, "loss": 2.0}))
    assert study.column("score") == [48, 20, 51]
    assert front_mask(study, eligible(study)).tolist() == [False, False, True]


@pytest.mark.slow
def test_the_command_prints_and_writes_the_front(
    make_study: MakeStudy, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        (names.COMPLETE, {"reg_weight": 0.0, "reg_error": None, "lr": 0.1}, scored(60, 2), []),
        (names.COMPLETE, {"reg_weight": 0.21, "reg_error": "cosine", "lr": 0.1}, scored(55, 6), []),
        (names.STOPPED, {"reg_weight": 5.0, "reg_error": "mse", "lr": 0.1}, scored(10, -2), []),
    ]
    make_study(rows)
    assert main(["demo", "--storage", str(storage), "--json"]) == 0
    printed = capsys.readouterr()
    last = json.loads(printed.out.splitlines()[-1])
    assert [row["trial"] for row in last["front"]] == [0, 1]
    assert last["front"][1]["reg_weight"] == 0.21
    assert (last["trials"], last["hypervolume"]) == (3, 60 * 2 + 55 * 4)
    assert "front (2 of 3 trials)" in printed.out
    assert "2 complete, 1 stopped" in printed.out
    assert f"next     python -m analysis.report demo --storage {storage}" in printed.err
    table = parquet.read_table(storage / "demo" / "analysis" / "trials.parquet")
    assert table["front"].to_pylist() == [True, True, False]
    assert table["reg_error"].to_pylist() == [None, "cosine", "mse"]
    for name in ("front", "hypervolume"):
        assert (storage / "demo" / "analysis" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (storage / "demo" / "analysis" / f"{name}.svg").read_bytes()
    assert table["knee"].to_pylist().count(True) == 1


def test_a_front_of_one_says_so(make_study: MakeStudy, storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_study([(names.COMPLETE, {}, scored(60, 2), []), (names.COMPLETE, {}, scored(50, 1), [])])
    assert main(["demo", "--storage", str(storage), "--out", str(storage / "there")]) == 0
    assert "single point" in capsys.readouterr().out
    assert (storage / "there" / "front.png").exists()


@pytest.mark.parametrize("rows", [[], [(names.FAILED, {"lr": 0.1}, {}, [])]])
def test_a_study_without_complete_trials_is_no_error(
    rows: list, make_study: MakeStudy, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(rows)
    assert main(["demo", "--storage", str(storage), "--json"]) == 0
    printed = capsys.readouterr()
    said = {"front": [], "trials": len(rows), "hypervolume": 0.0, "not_eligible": []}
    assert json.loads(printed.out.splitlines()[-1]) == said
    assert "no trial is complete" in printed.out
    assert not (storage / "demo" / "analysis" / "front.png").exists()


def test_an_unknown_study_is_one_line(make_study: MakeStudy, storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_study([])
    assert run_command(main, ["demi", "--storage", str(storage)]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "there are demo" in error


@pytest.mark.parametrize("module", ["load", "pareto", "importance", "twins", "export"])
def test_help_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, analysis.{module} as m; m.parser().format_help(); "
        "sys.exit(' '.join(x for x in ('torch', 'mlflow', 'matplotlib', 'ray', 'optuna') if x in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.stderr.strip() == ""


@pytest.mark.parametrize("module", ["load", "pareto", "importance", "twins", "report"])
@pytest.mark.parametrize("arguments", [[], ["demo", "--storage", ""], ["demo", "--what"], [""], ["demo", "--out", ""]])
def test_a_refusal_is_one_line(module: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = importlib.import_module(f"analysis.{module}").main
    assert run_command(command, arguments) == EXIT_BAD_INPUT
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.err.startswith("error: ") and not printed.out
