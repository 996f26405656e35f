"""Who can be on a front: the rule, that search and analysis ask the same one, and every command on a study with trials
that cannot be on it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_studies import MakeStudy, invented_table, scored
from pyarrow import parquet

from analysis import importance, pareto, report, twins
from analysis.export import main as export
from analysis.export.card import model_card
from analysis.export.picks import pick_rows, roles
from analysis.load import load_curves, load_study
from analysis.report.page import collect, render
from analysis.report.trials import plain_networks
from analysis.statistics.effect import lambda_effects
from analysis.statistics.front import comparable, eligible, find_front, front_mask
from analysis.statistics.importance import FRONT
from analysis.statistics.importance import importance as find_importance
from analysis.table import StudyTable
from study import names
from study.command import EXIT_BAD_INPUT, run_command
from study.errors import ArtifactError, InputError
from study.ledger import Ledger
from study.metrics import ACCURACY, FAITHFULNESS, UNDEFINED_SHARE
from study.search.search import Search
from study.spec.eligible import constraints_of, reasons_line, violations, why_not_eligible
from study.spec.study_spec import StudySpec
from study.spec.terms import Constraint

TWO = (ACCURACY, FAITHFULNESS)
MIN_40 = {"accuracy": Constraint(min=40)}
SHARE = UNDEFINED_SHARE.ledger_name


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (scored(50, 5), ""),
        (scored(40, 5), ""),
        (scored(1.2, 5), "accuracy 1.2 % is below 40"),
        (scored(39.99996, 5), "accuracy 39.99996 % is below 40"),
        (scored(50, 5, **{SHARE: 5.0}), ""),
        (scored(50, 5, **{SHARE: 7.04}), "7.04 % of its maps are undefined (at most 5 %)"),
        (scored(50, 5, **{SHARE: math.nan}), "an unknown share of its maps are undefined (at most 5 %)"),
        (scored(50, math.nan), "faithfulness is not a finite number"),
        (scored(math.inf, 5), "accuracy is not a finite number"),
        (
            scored(3, 0, **{SHARE: 100.0}),
            "accuracy 3 % is below 40; 100 % of its maps are undefined (at most 5 %)",
        ),
    ],
)
def test_the_reason_says_what_is_wrong(report: dict[str, float], reason: str) -> None:
    values = [report[m.ledger_name] for m in TWO]
    assert why_not_eligible(names.COMPLETE, values, report, TWO, MIN_40) == reason
    assert (max(violations(report, MIN_40).values()) > 0) == (bool(reason) and "faithfulness" not in reason)


def test_what_is_not_complete_or_not_reported_is_not_eligible() -> None:
    report = scored(50, 5)
    assert why_not_eligible(names.STOPPED, [50, 5], report, TWO, {}) == "it is not complete (stopped)"
    loss = {"loss": Constraint(max=1)}
    assert why_not_eligible(names.COMPLETE, [50, 5], report, TWO, loss) == "loss is not a finite number"
    assert violations(report, loss) == {}
    report["val/loss"] = 1.5
    assert why_not_eligible(names.COMPLETE, [50, 5], report, TWO, loss) == "loss 1.5 nats is above 1"


def test_a_long_list_of_reasons_is_cut() -> None:
    assert reasons_line([]) == ""
    assert reasons_line([(3, "x")]) == "1 complete trial is not eligible: trial 3 (x)"
    assert reasons_line([(n, "x") for n in range(7)]).endswith("trial 4 (x); and 2 more")


def test_constraints_of_another_version_are_one_line() -> None:
    for given_ in ({"speed": {"min": 1}}, {"accuracy": {"low": 1}}, {"accuracy": 3}, [1]):
        with pytest.raises(ArtifactError, match="another version"):
            constraints_of("demo", {"constraints": given_})


number = st.one_of(st.integers(0, 8).map(float), st.just(math.nan))
shares = st.one_of(st.none(), st.sampled_from([0.0, 5.0, 5.1, 100.0, math.nan]))
losses = st.one_of(st.none(), st.sampled_from([0.5, 2.0, math.nan]))
bounds = st.sampled_from(
    [{}, {"accuracy": {"min": 3}}, {"faithfulness": {"max": 5}}, {"accuracy": {"min": 2}, "loss": {"max": 1}}]
)


@given(st.lists(st.tuples(number, number, shares, losses), max_size=12), bounds, bounds)
@settings(max_examples=40, deadline=None)
def test_search_and_analysis_agree_on_the_front(
    trials: list[tuple[float, float, float | None, float | None]],
    then: dict[str, dict[str, float]],
    now: dict[str, dict[str, float]],
) -> None:
    """Also where the constraints were changed after the trials were run."""
    search = Search(spec_of(then, len(trials)), "s", None)
    runs: list[tuple[int, dict[str, Any], dict[str, float]]] = []
    for i, (accuracy, faithfulness, share, loss) in enumerate(trials):
        scores = scored(accuracy, faithfulness)
        scores |= {SHARE: share} if share is not None else {}
        scores |= {"val/loss": loss} if loss is not None else {}
        trial = search.next_trial()
        assert trial is not None
        search.end(i, names.COMPLETE, scores)
        runs.append((0, {"lr": trial.config.lr}, scores))
    search.spec = spec_of(now, len(trials))
    study = invented_table(runs, constraints=now)
    expected = [study.column("trial")[row] for row in front_mask(study, eligible(study)).nonzero()[0]]
    assert sorted(number for number, *_ in search.front()) == expected
    finite = {i for i, (a, f, *_) in enumerate(trials) if math.isfinite(a) and math.isfinite(f)}
    assert search.not_eligible() == [entry for entry in study.not_eligible() if entry[0] in finite]


scores = st.tuples(st.integers(0, 8).map(float), st.integers(0, 8).map(float))


@given(st.lists(scores, min_size=1, max_size=5), st.lists(scores, max_size=6))
@settings(max_examples=25, deadline=None)
def test_study_run_and_analysis_pareto_show_one_front(
    trials: list[tuple[float, float]], again: list[tuple[float, float]]
) -> None:
    """Of configurations that were repeated with other seeds: each once, with the mean over its seeds."""
    search = Search(spec_of({"accuracy": {"min": 2}}, len(trials)), "s", None)
    runs: list[tuple[int, dict[str, Any], dict[str, float]]] = []

    def run(values: tuple[float, float]) -> None:
        trial = search.next_trial()
        assert trial is not None and trial.number == len(runs)
        search.end(trial.number, names.COMPLETE, scored(*values))
        runs.append((trial.config.seed, {"lr": trial.config.lr}, scored(*values)))

    for values in trials:
        run(values)
    for n, values in enumerate(again, 1):
        if search.enqueue_replicates(n, 1):
            run(values)
    study = invented_table(runs, constraints={"accuracy": {"min": 2}})
    shown = pareto.summary(study, find_front(study))["front"]
    assert {row["trial"]: [row["accuracy"], row["faithfulness"]] for row in shown} == {
        number: values for number, _, values in search.front()
    }


def spec_of(constraints: dict[str, dict[str, float]], trials: int) -> StudySpec:
    return StudySpec.model_validate(
        {
            "objectives": {"accuracy": "maximize", "faithfulness": "maximize"},
            "space": {"lr": {"float": [0.01, 1.0]}},
            "fixed": {"network": "tiny"},
            "fidelity": {"max_epochs": 4},
            "budget": {"trials": max(1, trials)},
            "constraints": constraints,
            "sampler": "random",
        }
    )


def test_undefined_maps_are_one_more_constraint_to_optuna_where_they_are_reported(tmp_path: Path) -> None:
    search = Search(spec_of({"accuracy": {"min": 40}}, 2), "s", tmp_path / "optuna.db")
    for i, more in enumerate(({}, {SHARE: 12.0})):
        search.next_trial()
        search.end(i, names.COMPLETE, {**scored(50, 5), **more})
    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'optuna.db'}").trials
    assert [t.constraints for t in trials] == [{"accuracy": -10.0}, {"accuracy": -10.0, "undefined_share": 7.0}]
    assert [number for number, *_ in search.front()] == [0]


def params(weight: float, **more: object) -> dict[str, object]:
    return {"network": "tiny", "reg_weight": weight, "reg_error": "cosine" if weight else None, "lr": 0.1, **more}


#: Trials 1 and 2 would be the front if anybody could be on it; 3 is the twin of 0.
ROWS = [
    (names.COMPLETE, params(0.5), scored(60, 5), []),
    (names.COMPLETE, params(0.7), scored(20, 30), []),
    (names.COMPLETE, params(0.9), scored(90, 40, **{SHARE: 50.0}), []),
    (names.COMPLETE, params(0.0), scored(30, 1), []),
    (names.COMPLETE, params(0.2), scored(55, 2), []),
]
LINE = (
    "3 complete trials are not eligible: trial 1 (accuracy 20 % is below 40); trial 2 (50 % of its maps are undefined "
    "(at most 5 %)); trial 3 (accuracy 30 % is below 40)"
)
CONSTRAINTS = {"accuracy": {"min": 40}}


def mixed() -> StudyTable:
    return invented_table([(0, *row[1:3]) for row in ROWS], constraints=CONSTRAINTS)


def none_eligible() -> StudyTable:
    return invented_table([(0, *row[1:3]) for row in ROWS[1:4]], constraints=CONSTRAINTS)


def test_only_who_can_be_is_on_the_front_and_the_table_says_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = mixed()
    front = find_front(study)
    assert front.mask.tolist() == [True, False, False, False, False] and front.knee == 0 and front.volume == 300
    pareto.print_front(study, front)
    printed = capsys.readouterr().out
    assert LINE in printed and "front (1 of 5 trials)" in printed
    assert pareto.summary(study, front)["not_eligible"][1] == {
        "trial": 2, "reason": "50 % of its maps are undefined (at most 5 %)",
    }  # fmt: skip
    pareto.print_front(none_eligible(), find_front(none_eligible()))
    assert "front: empty, 3 complete trials are not eligible: trial 0 (accuracy 20 % is below 40)" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
@pytest.mark.parametrize("rows", [ROWS, ROWS[1:4]])
def test_figures_and_files_show_them_as_what_they_are(rows: list, make_study: MakeStudy, tmp_path: Path) -> None:
    ledger = make_study(rows, constraints=CONSTRAINTS)
    study = load_study(ledger)
    front = find_front(study)
    pareto.write_files(study, load_curves(ledger, study), front, tmp_path)
    table = parquet.read_table(tmp_path / "trials.parquet")
    assert [bool(r) for r in table["not_eligible"].to_pylist()] == [not e for e in front.eligible]
    drawn = (tmp_path / "front.svg").read_text()
    assert "not eligible" in drawn
    assert ("front (number: trial)" in drawn) == bool(front.mask.any())


def test_the_report_shows_them_apart(make_study: MakeStudy) -> None:
    text = page(make_study(ROWS, constraints=CONSTRAINTS))
    assert LINE in text and text.count('class="outside"') == 2  # in the chart and in its legend
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert set(data["reasons"]) == {"1", "2", "3"} and data["sections"].keys() == {"0"}
    assert "5 complete trials, 1 on the front, 3 not eligible" in text


def test_a_report_without_anybody_eligible_says_so(make_study: MakeStudy) -> None:
    text = page(make_study(ROWS[1:4], constraints=CONSTRAINTS))
    assert "There is no front yet: 3 complete trials are not eligible" in text and 'class="outside"' in text


def page(ledger: Ledger) -> str:
    study = load_study(ledger)
    return render(collect(ledger, study, load_curves(ledger, study), None, "typed", ""), [])


def test_twins_are_of_the_front_and_need_not_be_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    study = mixed()
    assert twins.find_twins(study, front_mask(study, eligible(study))) == [twins.Pair(0, 3)]
    assert plain_networks(study, find_front(study), [0])[0].row == 3
    assert twins.report_twins(Ledger("sqlite:///none", "s"), none_eligible(), []) == []
    assert "twins: there is no front: 3 complete trials are not eligible" in capsys.readouterr().out


def test_replicates_and_hypervolume_leave_them_out() -> None:
    runs = [(seed, params(0.5), scored(60 + seed, 5)) for seed in (0, 1)]
    runs += [(seed, params(0.7), scored(20, 30 + seed)) for seed in (0, 1)]
    front = find_front(invented_table(runs, constraints=CONSTRAINTS))
    assert front.repeated is not None and front.repeated.freedom == 1
    assert front.repeated.seeds.tolist() == [2, 2, 0, 0] and front.repeated.volume[2] == 305


@pytest.mark.slow
def test_importance_learns_from_who_breaks_a_constraint_but_not_from_undefined_maps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs: list[tuple[int, dict[str, Any], dict[str, float]]] = []
    for i in range(40):
        share = {SHARE: 60.0} if i % 10 == 0 else {SHARE: 0.0}
        runs.append((0, params(0.01 * (i % 8), lr=0.01 * i + 0.01), scored(2.0 * i, 40.0 - i, **share)))
    study = invented_table(runs, constraints=CONSTRAINTS)
    learned = comparable(study)
    found = find_importance(study, learned)
    assert found.trials == 36 and found.outside == 18 and FRONT in found.shares
    assert max(found.shares["accuracy"], key=found.shares["accuracy"].__getitem__) == "lr"
    importance.print_importance(study, found)
    said = "importance from 36 complete trials, 18 of them not eligible: for the front they rank behind all others"
    assert said in capsys.readouterr().out
    assert lambda_effects(study, learned)[0].configurations == 36


def test_importance_of_a_study_without_anybody_eligible_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [(0, params(0.1, lr=0.01 * i + 0.01), scored(0.5 * i, 1.0)) for i in range(20)]
    study = invented_table(runs, constraints=CONSTRAINTS)
    found = find_importance(study, comparable(study))
    importance.print_importance(study, found)
    assert FRONT not in found.shares and "front: empty, 20 complete trials are not eligible" in capsys.readouterr().out


def test_exports_leave_them_out_unless_asked() -> None:
    study = mixed()
    assert pick_rows(study, "all") == pick_rows(study, "best:faithfulness") == [0]
    assert pick_rows(study, "all", include_infeasible=True) == [0, 2]
    assert pick_rows(study, "best:faithfulness", include_infeasible=True) == [2]
    assert roles(study) == {0: ["knee", "best-accuracy", "best-faithfulness"]}
    nobody = none_eligible()
    with pytest.raises(InputError, match="no front to export: 3 complete trials .* --include-infeasible"):
        pick_rows(nobody, "knee")
    assert pick_rows(nobody, "knee", include_infeasible=True) == [1] and roles(nobody) == {}


def test_the_card_of_one_that_is_exported_all_the_same_says_so() -> None:
    test = {
        "accuracy": 20.0, "accuracy_interval": [18, 22], "accuracy_images": 100, "faithfulness": 1.0, "alignment": 0.1,
        "faithfulness_interval": [0, 2], "faithfulness_images": 50, "protocol": "paper/1", "opened": "now",
        "looks_in_study": 1, "data_fingerprint": "f",
    }  # fmt: skip
    config = {
        "evaluation": {"methods": ["grad_cam"]}, "reg_weight": 0.0, "epochs": 1, "batch_size": 8, "lr": 0.1,
        "schedule": "cosine", "weight_decay": 0.0, "seed": 0,
        "data": {"source": "shapes", "labels": "fine", "validation_fraction": 0.1, "split_seed": 0, "train_images": 9},
    }  # fmt: skip
    card = {
        "config": config, "n_classes": 2, "classes": ["a", "b"], "data_fingerprint": "f",
        "scores": scored(20, 1.0),
    }  # fmt: skip
    entry = {
        "trial": 1, "network": "tiny", "reg_weight": 0.0, "roles": [], "on_front": False, "test_scores": test,
        "validation_images": 100, "parity": {"images": 4}, "run_id": "r", "seed": 0,
        "temperature": 1.5, "not_eligible": "accuracy 20 % is below 40",
    }  # fmt: skip
    about = {"study": "demo", "command": "c", "code_version": "1", "fingerprint": "f" * 64}
    said = "**Not eligible for the front of its study: accuracy 20 % is below 40.**"
    assert said in model_card(entry, card, about)
    assert "Not eligible" not in model_card({**entry, "not_eligible": ""}, card, about)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pareto", "report", "twins", "importance", "export"])
def test_where_nobody_is_eligible_every_command_says_so_in_a_line(
    command: str, make_study: MakeStudy, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(ROWS[1:4], constraints=CONSTRAINTS)
    commands = {m.__name__.split(".")[1]: m.main for m in (pareto, report, twins, importance)} | {"export": export}
    more = ["--out", str(tmp_path / "out")] if command == "export" else []
    code = run_command(commands[command], ["demo", "--storage", str(storage), *more])
    assert code == (EXIT_BAD_INPUT if command == "export" else 0)
    printed = capsys.readouterr()
    (line,) = [s for s in (printed.out + printed.err).splitlines() if "3 complete trials are not eligible" in s]
    assert "accuracy 20 % is below 40" in line and not (tmp_path / "out").exists()
