"""What MLflow's pages are told: readable notes, a view that fits into a tag, and nothing of a person's written over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from study import metrics
from study.ledger import Ledger, presentation
from study.spec.study_spec import load_spec
from tests.ledger.stored import run_of

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_every_specification_makes_a_view_that_fits(path: Path) -> None:
    spec = load_spec(path).model_dump(mode="json", by_alias=True)
    tags = presentation.experiment_tags(path.stem, "1", spec, 0)
    view = json.loads(tags["mlflow.sharedViewState.study"])
    state = json.loads(view["state"])
    assert len(tags["mlflow.sharedViewState.study"]) < 5000
    for name in spec["space"]:
        assert f"params.`{name}`" in state["selectedColumns"]
    for name in spec["objectives"]:
        assert f"metrics.`{metrics.OBJECTIVES[name].ledger_name}`" in state["selectedColumns"]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections
    note = presentation.study_note(path.stem, spec)
    assert all(f"| `{name}` |" in note for name in spec["space"]) and "None" not in note and "{" not in note


def test_the_best_come_first() -> None:
    for goals, ascending in (({"loss": "minimize", "accuracy": "maximize"}, True), ({"accuracy": "maximize"}, False)):
        tags = presentation.experiment_tags("s", "1", {"objectives": goals}, 0)
        state = json.loads(json.loads(tags["mlflow.sharedViewState.study"])["state"])
        assert state["orderByAsc"] is ascending
        assert state["orderByKey"] == f"metrics.`{metrics.OBJECTIVES[next(iter(goals))].ledger_name}`"


def test_a_view_too_large_for_a_tag_is_left_out() -> None:
    tags = presentation.experiment_tags("s", "1", {"space": {f"data.parameter_{i}": {} for i in range(200)}}, 0)
    assert "mlflow.sharedViewState.study" not in tags and presentation.NOTE in tags


def test_ranges_and_conditions_read_well() -> None:
    space = {
        "network": {"choice": ["tiny", "small"], "when": None},
        "reg_weight": {"float": [0.001, 10.0], "log": True, "zero": True, "when": None},
        "reg_error": {"choice": ["cosine"], "when": {"parameter": "reg_weight", "op": ">", "value": 0.0}},
        "rotation": {"float": [0, 15], "when": {"parameter": "network", "op": "==", "value": "tiny"}},
        "amp": {"choice": ["none"], "when": {"parameter": "flip", "op": "!=", "value": True}},
    }
    note = presentation.study_note("s", {"space": space, "objectives": {"accuracy": "maximize"}})
    assert "| `network` | tiny · small |" in note
    assert "| `reg_weight` | 0.001 to 10.0, log, and 0 |" in note
    assert "| `reg_error` | cosine, where reg_weight > 0 |" in note
    assert "| `rotation` | 0 to 15, where network == tiny |" in note
    assert "| `amp` | none, where flip != True |" in note
    assert "maximize `val/accuracy` (%)" in note


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"network": "tiny", "reg_weight": 0.0, "lr": 0.1}, "Trial 3: tiny, plain cross-entropy, lr 0.1."),
        ({"network": "tiny", "reg_weight": 2.5, "reg_error": "mse"}, "λ = 2.5, mse error of the input gradient."),
        ({}, "Trial 3: plain cross-entropy."),
    ],
)
def test_a_trial_in_one_line(params: dict[str, object], said: str) -> None:
    assert presentation.trial_note(3, params).splitlines()[0].endswith(said)


def test_the_studys_run_has_its_specification_as_input(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.open_study(fingerprint="f" * 64, spec={"objectives": {}}, tags={}, artifact_location=None)
        (found,) = run_of(ledger, ledger.record().run_id).inputs.dataset_inputs
        assert (found.dataset.name, found.dataset.digest) == ("specification", "f" * 32)
        assert [tag.value for tag in found.tags] == ["specification"]


def test_what_a_person_wrote_stays(ledger: Ledger) -> None:
    client, study = MlflowClient(ledger.tracking_uri), ledger.record().run_id
    experiment = client.get_experiment_by_name("demo").experiment_id
    trial = ledger.open_trial(0, 0, {"network": "tiny"}, {}).run_id
    assert client.get_run(trial).data.tags[presentation.NOTE].startswith("Trial 0: tiny")
    assert client.get_run(study).data.tags[presentation.NOTE].startswith("The study **demo**")
    for run_id in (study, trial):
        client.set_tag(run_id, presentation.NOTE, "mine")
    client.set_experiment_tag(experiment, presentation.NOTE, "mine")
    client.set_experiment_tag(experiment, "mlflow.sharedViewState.study", "{}")
    again = Ledger(ledger.tracking_uri, "demo")
    again.open_study(fingerprint="f" * 64, spec={"objectives": {}}, tags={}, artifact_location=None)
    again.open_trial(0, 0, {"network": "tiny"}, {})
    assert {client.get_run(run_id).data.tags[presentation.NOTE] for run_id in (study, trial)} == {"mine"}
    tags = client.get_experiment(experiment).tags
    assert (tags[presentation.NOTE], tags["mlflow.sharedViewState.study"]) == ("mine", "{}")
