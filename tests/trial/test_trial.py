"""One trial: trained, scored, saved, continued; and how it ends when it cannot go on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from study import metrics, names
from study.config import DataConfig, EvaluationConfig, TrialConfig
from study.data.augment import normalize
from study.errors import InputError
from study.storage.storage import Storage
from study.training.checkpoint import load_model, save_checkpoint
from study.trial.trial import Trial

pytestmark = pytest.mark.slow

CONFIG = TrialConfig(
    network="tiny",
    epochs=2,
    lr=0.05,
    reg_weight=0.1,
    batch_size=50,
    rungs=(1,),
    data=DataConfig(train_images=100, validation_images=40),
    evaluation=EvaluationConfig(images=20),
)


def run(trial: Trial) -> Trial:
    while not trial.finished:
        trial.step()
    return trial


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return run(Trial(CONFIG, tmp_path_factory.mktemp("trial")))


def test_every_epoch_reports_and_rungs_are_scored(finished: Trial) -> None:
    assert finished.state == names.COMPLETE
    assert [report["epoch"] for report in finished.history] == [1, 2]
    for report in finished.history:
        assert {metrics.TRAIN_LOSS, metrics.TRAIN_REGULARIZATION, metrics.ACCURACY.ledger_name} <= set(report)
        assert {metrics.FAITHFULNESS.ledger_name, metrics.ALIGNMENT.ledger_name} <= set(report)
        weighted = report[metrics.TRAIN_CLASSIFICATION] + CONFIG.reg_weight * report[metrics.TRAIN_REGULARIZATION]
        assert report[metrics.TRAIN_LOSS] == pytest.approx(weighted, rel=1e-4)
    with pytest.raises(RuntimeError, match="finished"):
        finished.step()


def test_opened_again_it_is_finished_with_the_same_history(finished: Trial) -> None:
    again = Trial(CONFIG, finished.folder)
    assert again.finished and again.history == finished.history
    for a, b in zip(again.network.state_dict().values(), finished.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_it_exports_proves_itself(finished: Trial, tmp_path: Path) -> None:
    files = finished.export(tmp_path)
    assert [f.name for f in files] == [names.MODEL_FILE, names.MODEL_CONFIG_FILE, names.PER_IMAGE_FILE]
    network, card = load_model(tmp_path)
    assert card["protocol"] == "paper/2" and card["temperature"] > 0
    assert card["data_fingerprint"] == finished.dataset.fingerprint
    assert json.loads((tmp_path / names.MODEL_CONFIG_FILE).read_text())["config"] == CONFIG.to_dict()
    ours = finished.network.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in network.state_dict().items())


def test_scores_in_another_process_are_the_same(finished: Trial, tmp_path: Path) -> None:
    again = Trial(CONFIG, finished.folder)
    again.export(tmp_path)
    assert again.report is not None
    assert again.report.faithfulness == finished.history[-1][metrics.FAITHFULNESS.ledger_name]


def test_a_folder_of_another_training_is_refused(finished: Trial) -> None:
    with pytest.raises(InputError, match="differ in lr"):
        Trial(dataclasses.replace(CONFIG, lr=0.06), finished.folder)
    with pytest.raises(InputError, match="differ in data"):
        Trial(dataclasses.replace(CONFIG, data=DataConfig(train_images=90)), finished.folder)


FAST = dataclasses.replace(
    CONFIG, network="airbench16", schedule="linear", norm_lr_multiple=8.0, initialization="dirac", crop_padding=2,
    crop_mode="reflect", reg_warmup_epochs=1.0,
)  # fmt: skip


def test_fixed_layers_are_fitted_once_and_travel_with_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Trial(FAST, tmp_path / "first")
    filters = first.network.whitening.weight.clone()
    assert torch.equal(first.network.layers[1].weight[:, :16, 1, 1], torch.eye(16))
    x = normalize(torch.as_tensor(first.dataset.train.images), first.dataset.mean, first.dataset.std)
    responses = first.network.whitening(x)[:, :12].transpose(0, 1).flatten(1)
    assert responses.cov().diag().median() == pytest.approx(1, abs=0.05)  # of these very images, as they are trained on
    other_seed = Trial(dataclasses.replace(FAST, seed=1), tmp_path / "seed")
    assert torch.equal(other_seed.network.whitening.weight, filters)
    assert not torch.equal(other_seed.network.head.weight, first.network.head.weight)
    first.step()
    monkeypatch.setattr("study.trial.trial.fit", lambda *_: pytest.fail("a resumed training was fitted again"))
    second = run(Trial(FAST, tmp_path / "first"))
    assert second.epoch == 2 and torch.equal(second.network.whitening.weight, filters)
    second.export(tmp_path / "out")
    assert torch.equal(load_model(tmp_path / "out")[0].whitening.weight, filters)


def test_a_checkpoint_from_before_a_parameter_existed_is_continued(tmp_path: Path) -> None:
    first = Trial(CONFIG, tmp_path)
    first.step()
    new = ("norm_lr_multiple", "initialization", "crop_mode", "reg_warmup_epochs")
    config = {name: value for name, value in CONFIG.to_dict().items() if name not in new}
    header = {
        "config": config, "data_fingerprint": first.dataset.fingerprint, "n_classes": first.dataset.n_classes,
        "history": first.history,
    }  # fmt: skip
    save_checkpoint(tmp_path / names.CHECKPOINT_FILE, first.network, first.optimizer, header)
    assert Trial(CONFIG, tmp_path).epoch == 1
    with pytest.raises(InputError, match="differ in norm_lr_multiple"):
        Trial(dataclasses.replace(CONFIG, norm_lr_multiple=2.0), tmp_path)


def test_a_trial_that_diverges_says_so_and_saves_nothing(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, lr=1000.0, reg_weight=0.0, warmup_epochs=0.0, epochs=5, rungs=())
    trial = Trial(config, tmp_path)
    run(trial)
    assert trial.state == names.DIVERGED and "non-finite" in trial.reason
    assert all(torch.isfinite(p).all() for p in trial.network.parameters())
    assert Trial(config, tmp_path).epoch == trial.epoch


def test_another_machine_continues_from_the_store(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    here, there = Storage(tmp_path / "here", store), Storage(tmp_path / "there", store)
    first = Trial(CONFIG, here.local / "trials" / "0000", storage=here)
    first.step()
    second = Trial(CONFIG, there.local / "trials" / "0000", storage=there)
    assert second.epoch == 1
    second.step()
    again = Trial(CONFIG, here.local / "trials" / "0000", storage=here)
    assert again.epoch == 2, "its own copy is from before the trial was elsewhere"
    shutil.rmtree(here.local)
    whole = run(Trial(CONFIG, tmp_path / "whole"))
    run(second)
    for a, b in zip(second.network.state_dict().values(), whole.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
