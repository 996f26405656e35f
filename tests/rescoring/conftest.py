"""A study with a real network, made up to be of a version that scored under ``paper/1``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from study import metrics, names
from study.config import fingerprint
from study.data import open_dataset
from study.ledger import Ledger, create_store, default_tracking_uri
from study.spec.study_spec import StudySpec
from study.storage.storage import Storage, trial_folder
from study.storage.study_file import write_study
from study.training.checkpoint import load_checkpoint, save_checkpoint
from study.trial.trial import Trial
from tests.rescoring.old_study import OLD_SCORES, POINTS, SPEC, Old


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Trained, with the checkpoint of its first epoch beside that of its last."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    trial = Trial(StudySpec.model_validate(SPEC).trial_config({"lr": POINTS[0]}), folder, device=torch.device("cpu"))
    trial.step()
    shutil.copy(folder / names.CHECKPOINT_FILE, folder / "first")
    trial.step()
    trial.export(folder)
    return trial


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    create_store(default_tracking_uri(folder))
    return folder / names.LEDGER_FILE


def old_report(report: Mapping[str, float]) -> dict[str, float]:
    scored = metrics.ALIGNMENT.ledger_name in report
    return {k: v for k, v in report.items() if not metrics.is_score(k)} | (OLD_SCORES if scored else {})


@pytest.fixture
def old(trained: Trial, empty_store: Path, tmp_path: Path) -> Old:
    """Trials 0 and 1 complete; 2 and 3 stopped at the rung, 3 without its checkpoint; 4 interrupted after the rung."""
    spec = StudySpec.model_validate(SPEC)
    storage = Storage(tmp_path / "results")
    storage.local.mkdir()
    shutil.copy(empty_store, storage.local)
    ledger = Ledger(default_tracking_uri(storage.local), "k")
    identity = spec.identity(open_dataset(spec.data_config).fingerprint)
    for name in ("masking_images", "shifts", "calibration_images"):
        del identity["evaluation"][name]
    write_study(storage, "k", spec, identity, fingerprint(identity))
    ledger.open_study(
        fingerprint=fingerprint(identity), spec=spec.model_dump(mode="json", by_alias=True), tags={},
        artifact_location=(storage.local / "k" / "artifacts").as_uri(),
    )  # fmt: skip
    search = optuna.create_study(
        study_name="k", storage=f"sqlite:///{storage.local / 'k' / names.OPTUNA_FILE}", directions=["maximize"] * 2
    )
    history = [old_report(r) for r in trained.history]
    values = [history[-1][metrics.ACCURACY.ledger_name], 99.0]
    rungs = {"1": [history[0][metrics.ACCURACY.ledger_name], 99.0]}
    for number, lr in enumerate(POINTS):
        config = spec.trial_config({"lr": lr})
        params = config.to_dict()
        for name in ("masking_images", "shifts", "calibration_images"):
            del params["evaluation"][name]
        folder = trial_folder(storage, "k", number)
        folder.mkdir(parents=True)
        run = ledger.open_trial(number, 0, params, {})
        run.sync(history if number < 2 else history[:1])
        if number < 2:
            files = []
            for name in (names.MODEL_FILE, names.MODEL_CONFIG_FILE, names.PER_IMAGE_FILE):
                files.append(Path(shutil.copy(trained.folder / name, folder)))
            card = json.loads((folder / names.MODEL_CONFIG_FILE).read_text())
            card |= {"scores": history[-1], "protocol": "paper/1", "temperature": None, "config": params}
            (folder / names.MODEL_CONFIG_FILE).write_text(json.dumps(card))
            (folder / names.PER_IMAGE_FILE).write_bytes(b"old")
            run.finish(names.COMPLETE, files=files, tags={names.TAG_PROTOCOL: "paper/1"})
        elif number < 4:
            run.finish(names.STOPPED, tags={names.TAG_STOPPED_AFTER: "1"})
        if number in (2, 4):
            first = load_checkpoint(trained.folder / "first")
            header = {**first.header, "config": {**params, "lr": lr}, "history": history[:1]}
            del header["protocol"]
            network = Trial(config, tmp_path / f"scratch{number}", device=torch.device("cpu"))
            network.network.load_state_dict(first.model)
            save_checkpoint(folder / names.CHECKPOINT_FILE, network.network, network.optimizer, header)
        state = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.RUNNING)
        search.add_trial(
            optuna.create_trial(
                state=state[number],
                params={"lr": lr},
                distributions={"lr": FloatDistribution(0.01, 0.2)},
                values=values if number < 2 else None,
                user_attrs={"rungs": rungs} if number < 4 else {},
                system_attrs={"constraints:accuracy": -99.0} if number < 2 else {},
            )
        )
    spec_file = tmp_path / "k.yaml"
    spec_file.write_text(yaml.safe_dump(SPEC))
    return Old(trained, spec, spec_file, storage, ledger)
