"""A study that was scored under another protocol: refused, scored again, continued; whenever it is killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from study import metrics, names, rescore, run
from study.errors import ArtifactError, InputError, UnavailableError
from study.faithfulness.report import read_per_image
from study.faithfulness.statistics import image_scores
from study.ledger import Ledger, TrialRecord
from study.rescoring import scoring as rescoring
from study.search import rewrite as rewrite_module
from study.search.warm_start import warm_start
from study.storage.storage import trial_folder
from study.training.checkpoint import load_model
from study.trial.trial import Trial
from tests.rescoring.old_study import Old

pytestmark = pytest.mark.slow

FAITHFULNESS, ACCURACY = metrics.FAITHFULNESS.ledger_name, metrics.ACCURACY.ledger_name
TIMES = {metrics.IMAGE_SECONDS}
NOW = metrics.protocol_identity("paper")


def refusal(old: Old) -> str:
    with pytest.raises(InputError) as refused:
        run.main([str(old.spec_file), *old.options])
    (line,) = str(refused.value).splitlines()
    return line


def is_accepted(old: Old, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the same study.run command comes as far as to Ray."""
    ray = Mock(side_effect=KeyboardInterrupt)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr("study.tuning.session.connected", ray)
        run.main([str(old.spec_file), *old.options])
    return ray.called


def scores(report: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in report.items() if metrics.is_score(k) and k not in TIMES}


def check(old: Old, folder: Path) -> None:
    """Ledger, files and search all say what the networks give under the protocol of this version."""
    first, last = (scores(report) for report in old.trained.history)
    records = old.ledger.trials()
    assert [r.protocol for r in records] == [NOW] * 5 and [r.trial for r in records] == [0, 1, 2, 3, 4]
    assert [r.state for r in records] == ["complete", "complete", "stopped", "stopped", "running"]
    for record, expected in zip(records, (last, last, first, None, first), strict=True):
        for name, value in scores(record.metrics).items():
            wanted = math.nan if expected is None else expected.get(name, math.nan)
            assert value == pytest.approx(wanted, rel=1e-5, abs=1e-5, nan_ok=True), (record.trial, name)
        assert record.metrics[ACCURACY] == old.trained.history[-1 if record.trial < 2 else 0][ACCURACY]
    for record in records[:2]:
        network = old.ledger.download(record.run_id, names.CHECKPOINT_ARTIFACTS, folder / str(record.trial))
        _, card = load_model(network)
        assert card["protocol"] == NOW and card["temperature"] == card["scores"][metrics.TEMPERATURE]
        assert scores(card["scores"]) == {k: v for k, v in scores(record.metrics).items() if not math.isnan(v)}
        per_image = read_per_image(network / names.PER_IMAGE_FILE)
        assert image_scores(per_image)["faithfulness"].mean() == pytest.approx(record.metrics[FAITHFULNESS])
        copy = trial_folder(old.storage, "k", record.trial)
        for name in (names.MODEL_CONFIG_FILE, names.PER_IMAGE_FILE):
            assert (copy / name).read_bytes() == (network / name).read_bytes()
    trials = old.trials()
    assert [t.state.name for t in trials] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED", "RUNNING"]
    for trial, record in zip(trials[:2], records[:2], strict=True):
        assert trial.values == [record.metrics[ACCURACY], record.metrics[FAITHFULNESS]]
        undefined = record.metrics[metrics.UNDEFINED_SHARE.ledger_name] - metrics.MAX_UNDEFINED_SHARE
        assert trial.constraints == {"accuracy": 1 - record.metrics[ACCURACY], "undefined_share": undefined}
        assert trial.user_attrs["rungs"] == {}, "the network of its rung is gone"
    assert trials[2].user_attrs["rungs"] == {"1": [records[2].metrics[ACCURACY], records[2].metrics[FAITHFULNESS]]}
    assert trials[3].user_attrs["rungs"] == {} and trials[4].params == {"lr": 0.09}
    assert not (old.storage.local / "k" / ".rescore").exists()


def test_refused_scored_again_and_accepted(
    old: Old, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(old)
    assert f"was scored under paper/1 and this version scores under {NOW}" in line
    assert f"`python -m study.rescore k --storage {old.storage.local}`" in line and "--fork NEW" in line
    assert rescore.main(["k", *old.options]) == 0
    said = capsys.readouterr()
    assert f"5 trials are scored under {NOW} now, under an unnamed protocol, paper/1 before; 1 of them" in said.out
    assert "next     python -m analysis.pareto k" in said.err
    check(old, tmp_path / "files")
    assert is_accepted(old, monkeypatch)
    before = old.ledger.trials()
    assert rescore.main(["k", *old.options]) == 0
    assert f"all its scores are made under {NOW} already" in capsys.readouterr().out
    assert str(old.ledger.trials()) == str(before)


@pytest.mark.parametrize("killed_in", range(5))
def test_killed_it_goes_on(old: Old, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: int) -> None:
    """In the ledger's last write of a trial; what was scored by then is not scored again."""
    scored: list[object] = []
    score, switch = rescoring.score_network, Ledger.rescore
    monkeypatch.setattr(rescoring, "score_network", lambda *a: scored.append(a) or score(*a))

    def killed(self: Ledger, record: TrialRecord, *arguments: Any) -> None:
        if record.trial == killed_in:
            raise KeyboardInterrupt
        switch(self, record, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "rescore", killed)
        with pytest.raises(KeyboardInterrupt):
            rescore.main(["k", *old.options])
    protocols = [r.protocol for r in old.ledger.trials()]
    assert protocols == [NOW] * killed_in + ["paper/1", "paper/1", "", "", ""][killed_in:]
    assert "study.rescore k" in refusal(old)
    assert rescore.main(["k", *old.options]) == 0
    check(old, tmp_path / "files")
    assert len(scored) == 4, "each stored network once"
    assert is_accepted(old, monkeypatch)


def test_killed_before_the_search_has_heard_it_goes_on(
    old: Old, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rewrite_module, "move_into_place", killed)
        with pytest.raises(KeyboardInterrupt):
            rescore.main(["k", *old.options])
    assert old.trials()[0].values[1] == 99.0 and "study.rescore k" in refusal(old)
    assert rescore.main(["k", *old.options]) == 0
    check(old, tmp_path / "files")


def test_an_interrupted_training_goes_on_without_its_old_scores(old: Old) -> None:
    folder = trial_folder(old.storage, "k", 4)
    trial = Trial(old.spec.trial_config({"lr": 0.09}), folder)
    assert trial.epoch == 1 and scores(trial.history[0]) == pytest.approx(scores(old.trained.history[0]), rel=1e-5)
    assert Trial(trial.config, folder).history == trial.history
    trial.step()
    assert trial.finished and 99.0 not in trial.history[1].values()


def test_a_warm_start_takes_no_result_of_another_protocol(old: Old) -> None:
    ledger = Ledger(old.ledger.tracking_uri, "k")
    identity = json.loads((old.storage.local / "k" / names.STUDY_FILE).read_text())["identity"]
    start = warm_start(old.spec, identity, old.storage, ledger, checkpoints=True)
    assert start.results == () and [point["lr"] for point, _ in start.points] == [0.05, 0.06]
    assert f"no result of paper/1 holds here, under {NOW}: `python -m study.rescore k` first" in start.said
    assert rescore.main(["k", *old.options]) == 0
    start = warm_start(old.spec, identity, old.storage, ledger, checkpoints=True)
    assert len(start.results) == 2 and start.points == () and "rescore" not in start.said


def test_what_other_studies_gave_before_is_forgotten(old: Old) -> None:
    import optuna

    url = f"sqlite:///{old.storage.local / 'k' / names.OPTUNA_FILE}"
    search = optuna.load_study(study_name="k", storage=url)
    search.set_user_attr("warm_start", {"other": [{"params": {"lr": 0.1}, "values": [1.0, 99.0]}]})
    search.set_user_attr("kept", "yes")
    assert rescore.main(["k", *old.options]) == 0
    assert optuna.load_study(study_name="k", storage=url).user_attrs == {"kept": "yes", "protocol": NOW}


def test_a_network_of_which_only_the_ledger_has_a_copy_is_scored(old: Old) -> None:
    shutil.rmtree(trial_folder(old.storage, "k", 1))
    assert rescore.main(["k", *old.options]) == 0
    assert [r.protocol for r in old.ledger.trials()[:2]] == [NOW, NOW]


def test_a_complete_network_that_is_gone_stops_it_in_a_line(old: Old) -> None:
    shutil.rmtree(old.storage.local / "k" / "artifacts")
    shutil.rmtree(trial_folder(old.storage, "k", 1))
    with pytest.raises(ArtifactError, match="trial 1 is complete and its network cannot be had: .* bring it back, or"):
        rescore.main(["k", *old.options])
    records = old.ledger.trials()
    assert records[0].protocol == NOW, "its copy was in the trial's folder"
    assert records[1].protocol == "paper/1" and records[1].metrics[FAITHFULNESS] == 99.0


def test_bad_input_is_a_line(old: Old, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="study 'nonsense' is not in the ledger"):
        rescore.main(["nonsense", *old.options])
    with pytest.raises(InputError, match="STUDY '../k'"):
        rescore.main(["../k", *old.options])
    with pytest.raises(InputError, match="--data: is empty"):
        rescore.main(["k", "--data", "", *old.options])
    with pytest.raises(InputError, match="no such folder"):
        rescore.main(["k", "--data", str(tmp_path / "absent"), *old.options])
    stage = old.storage.local / "k" / ".rescore"
    with (stage / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match="'k' is being scored by another process"):
            rescore.main(["k", *old.options])
