"""Scores under another protocol take the place of those that a run has, in one step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.server import served
from study import metrics, names
from study.ledger import Ledger, SupersededError, TrialRecord
from study.ledger import rescored as rescored_module

FAITHFULNESS, INSERTION = metrics.FAITHFULNESS.ledger_name, metrics.saliency_metric("grad_cam", "insertion")
OLD = "val/random_maps"  # a score that the new protocol does not have
REPORTS = [
    {"epoch": 1, "val/accuracy": 10.0, FAITHFULNESS: 1.0, INSERTION: 60.0, OLD: 40.0},
    {"epoch": 2, "val/accuracy": 20.0},
    {"epoch": 3, "val/accuracy": 30.0, FAITHFULNESS: 3.0, INSERTION: 70.0, OLD: 41.0},
]


def scored_run(ledger: Ledger, folder: Path) -> TrialRecord:
    run = ledger.open_trial(0, 0, {"network": "tiny"}, {})
    run.sync(REPORTS)
    file = folder / "old" / names.PER_IMAGE_FILE
    file.parent.mkdir()
    file.write_text("old")
    run.finish(names.COMPLETE, files=[file], tags={names.TAG_PROTOCOL: "paper/1"})
    return ledger.trials()[0]


def new_file(folder: Path) -> Path:
    """As long as the old one."""
    file = folder / names.PER_IMAGE_FILE
    file.write_text("new")
    return file


def check(ledger: Ledger, folder: Path) -> None:
    """What a run says after it was switched, however often."""
    (record,) = ledger.trials()
    assert record.protocol == "paper/2" and record.holds_under("paper/2") and record.state == names.COMPLETE
    assert record.metrics[FAITHFULNESS] == 50.0 and record.metrics["val/accuracy"] == 30.0
    assert math.isnan(record.metrics[INSERTION]) and math.isnan(record.metrics[OLD]), "not among the new scores"
    curves = ledger.bulk().histories([record.run_id], 3)
    latest: dict[tuple[str, int], tuple[int, float]] = {}
    for name, epoch, value, when in zip(curves.names, curves.epochs, curves.values, curves.when_ms, strict=True):
        latest[name, epoch] = max(latest.get((name, epoch), (0, 0.0)), (when, value))
    assert math.isnan(latest[FAITHFULNESS, 1][1]) and latest[FAITHFULNESS, 3][1] == 50.0
    assert (FAITHFULNESS, 2) not in latest and latest["val/accuracy", 1][1] == 10.0
    artifact = f"{names.CHECKPOINT_ARTIFACTS}/{names.PER_IMAGE_FILE}"
    assert ledger.download(record.run_id, artifact, folder / "down").read_text() == "new"


def test_a_run_is_switched_and_switched_again_says_the_same(ledger: Ledger, tmp_path: Path) -> None:
    record = scored_run(ledger, tmp_path)
    assert ledger.other_protocol("paper/2") == "paper/1" and ledger.other_protocol("paper/1") is None
    stamps = ledger.bulk().stamps()
    for _ in range(2):
        ledger.rescore(record, "paper/2", {3: {FAITHFULNESS: 50.0}}, [new_file(tmp_path)])
        check(ledger, tmp_path)
    assert ledger.other_protocol("paper/2") is None
    assert ledger.bulk().stamps() != stamps, "what was kept of the ledger is read again"


@pytest.mark.slow
def test_a_server_switches_it_in_one_request(ledger: Ledger, tmp_path: Path) -> None:
    record = scored_run(ledger, tmp_path)
    with served(tmp_path / "mlflow.db") as uri:
        there = Ledger(uri, "demo")
        there.rescore(record, "paper/2", {3: {FAITHFULNESS: 50.0}}, [new_file(tmp_path)])
        check(there, tmp_path)


def test_killed_before_the_last_request_it_is_still_of_the_old_protocol(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = scored_run(ledger, tmp_path)
    monkeypatch.setattr(rescored_module, "NUMBERS_PER_REQUEST", 2)
    written = rescored_module.write_numbers
    calls = []

    def write(*arguments: object) -> None:
        if len(arguments) == 5:
            raise KeyboardInterrupt
        calls.append(written(*arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(rescored_module, "write_numbers", write)
    with pytest.raises(KeyboardInterrupt):
        ledger.rescore(record, "paper/2", {3: {FAITHFULNESS: 50.0}}, [new_file(tmp_path)])
    assert len(calls) == 2 and ledger.trials()[0].protocol == "paper/1"
    monkeypatch.setattr(rescored_module, "write_numbers", written)
    ledger.rescore(record, "paper/2", {3: {FAITHFULNESS: 50.0}}, [new_file(tmp_path)])
    check(ledger, tmp_path)


def test_a_run_that_somebody_trains_again_is_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    record = scored_run(ledger, tmp_path)
    ledger.open_trial(0, 0, {"network": "tiny"}, {})
    with pytest.raises(SupersededError):
        ledger.rescore(record, "paper/2", {3: {FAITHFULNESS: 50.0}})
    assert ledger.trials()[0].metrics[FAITHFULNESS] == 3.0


def test_a_run_that_does_not_say_its_protocol(ledger: Ledger) -> None:
    """Trials that were stopped early had no tag, in versions before there were two protocols."""
    ledger.open_trial(0, 0, {}, {}).sync(REPORTS[:1])
    ledger.open_trial(1, 0, {}, {}).sync(REPORTS[1:2])
    scored, unscored = ledger.trials()
    assert not scored.holds_under("paper/2") and unscored.holds_under("paper/2")


def test_no_study_has_no_other_protocol(tracking_uri: str) -> None:
    assert Ledger(tracking_uri, "nothing").other_protocol("paper/2") is None
    assert MlflowClient(tracking_uri).get_experiment_by_name("nothing") is None
