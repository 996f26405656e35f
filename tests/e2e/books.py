"""What the books of a study that is over must say, whatever befell it: nothing lost, doubled, or come out otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
from mlflow import MlflowClient

from study import metrics, names
from study.config import TrialConfig
from study.training.checkpoint import load_checkpoint
from study.trial.trial import Trial

SHIPPED = {names.MODEL_FILE, names.MODEL_CONFIG_FILE, names.PER_IMAGE_FILE}
_TIMES = {metrics.EPOCH_SECONDS, metrics.EVALUATION_SECONDS, metrics.IMAGE_SECONDS}


def check_books(
    client: MlflowClient, folder: Path, *, trials: int, epochs: int, files_of: Callable[[Any], set[str]]
) -> None:
    """Optuna and the ledger have every trial once and agree; series are whole and in order; no journal is left.

    ``folder`` is the study's; ``files_of`` a run's artifacts among those of its network.
    """
    name = folder.name
    asked = optuna.load_study(study_name=name, storage=f"sqlite:///{folder / names.OPTUNA_FILE}").trials
    assert [t.state.name for t in asked] == ["COMPLETE"] * trials
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = [r for r in client.search_runs([experiment.experiment_id]) if r.data.tags[names.TAG_ROLE] == "trial"]
    assert sorted(r.data.tags[names.TAG_KEY] for r in runs) == sorted(f"{name}/{n}/0" for n in range(trials))
    for run in runs:
        values = asked[int(run.data.tags[names.TAG_TRIAL])].values
        assert run.info.status == "FINISHED" and run.data.tags[names.TAG_STATE] == names.COMPLETE
        assert values == [run.data.metrics[m.ledger_name] for m in (metrics.ACCURACY, metrics.FAITHFULNESS)]
        for series in (metrics.TRAIN_LOSS, metrics.ACCURACY.ledger_name, "epoch"):
            history = client.get_metric_history(run.info.run_id, series)
            assert [m.step for m in history] == list(range(1, epochs + 1)), "complete, in order, once"
            assert [m.timestamp for m in history] == sorted(m.timestamp for m in history)
        assert files_of(run) >= SHIPPED
    left = list((folder / "trials").glob(f"*/{names.JOURNAL}*"))
    assert left == [], "the journal is empty"


def check_undisturbed(client: MlflowClient, folder: Path, work: Path, *, trials: int) -> None:
    """Every trial's reports, weights and final metrics in the ledger are, bit by bit, those of a training in peace.

    A trial is trained again in ``work``, by the configuration that its checkpoint names, on one thread as it was.
    """
    experiment = client.get_experiment_by_name(folder.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`{names.TAG_ROLE}` = 'trial'")
    runs = {int(run.data.tags[names.TAG_TRIAL]): run for run in found}
    assert sorted(runs) == list(range(trials))
    torch.set_num_threads(1)
    for number, run in runs.items():
        disturbed = load_checkpoint(folder / "trials" / f"{number:04d}" / names.CHECKPOINT_FILE)
        peace = Trial(TrialConfig.from_dict(disturbed.header["config"]), work / str(number), device=torch.device("cpu"))
        while not peace.finished:
            peace.step()
        assert list(map(_without_times, disturbed.header["history"])) == list(map(_without_times, peace.history))
        for tensor, expected in peace.network.state_dict().items():
            assert torch.equal(disturbed.model[tensor], expected), f"trial {number}: {tensor}"
        final = _without_times(peace.history[-1])
        assert {name: run.data.metrics[name] for name in final} == final
        card = json.loads((folder / "trials" / f"{number:04d}" / names.MODEL_CONFIG_FILE).read_text())
        assert _without_times(card["scores"]) == final


def _without_times(report: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in report.items() if name not in _TIMES}
