"""A trial's log: every attempt, epoch, warning and traceback, and its way to the trial's run in MLflow."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path

import pytest
import torch

from study import names
from study.config import DataConfig, EvaluationConfig, TrialConfig
from study.errors import InputError
from study.ledger import Ledger, TrialWriter, create_store, default_tracking_uri
from study.trial.log import TrialLog
from study.trial.trial import Trial

CONFIG = TrialConfig(
    "tiny", 2, 0.05, batch_size=32, data=DataConfig(train_images=64, validation_images=40),
    evaluation=EvaluationConfig(methods=("grad_cam",), images=10),
)  # fmt: skip


def new(folder: Path, config: TrialConfig = CONFIG) -> Trial:
    return Trial(config, folder, device=torch.device("cpu"))


@pytest.mark.slow
def test_attempts_epochs_warnings_and_tracebacks_are_lines(tmp_path: Path) -> None:
    new(tmp_path).step()
    again = new(tmp_path)
    with pytest.raises(ZeroDivisionError):
        again.step(lambda done, of: warnings.warn("thin ice", stacklevel=1) or 1 / 0)  # type: ignore[func-returns-value]
    with pytest.raises(InputError):
        new(tmp_path, TrialConfig("small", 2, 0.05, data=CONFIG.data))
    text = (tmp_path / names.TRIAL_LOG).read_text()
    lines = text.splitlines()
    assert all(re.match(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \S+/\d+ ", line) for line in lines)
    expected = (
        r"attempt on CPU, torch \S+, after epoch 0 of 2: .*\"network\": \"tiny\"", r"epoch 1/2 .*\"val/accuracy\"",
        "after epoch 1 of 2", "UserWarning .*thin ice", "epoch 2: ended by an exception", "ZeroDivisionError",
        "opening: ended by an exception", "belongs to another training",
    )  # fmt: skip
    found = [next(i for i, line in enumerate(lines) if re.search(pattern, line)) for pattern in expected]
    assert found == sorted(found)


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / names.TRIAL_LOG).mkdir()
    log = TrialLog(tmp_path)
    log.write("\ud800 nobody reads this")
    with log.watched("it"):
        pass
    (tmp_path / names.TRIAL_LOG).rmdir()
    log.write("\ud800 is half a character")
    assert log.file.read_text().rstrip().endswith("\\ud800 is half a character")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    folder = tmp_path_factory.mktemp("ledger")
    create_store(default_tracking_uri(folder))
    ledger = Ledger(default_tracking_uri(folder), "demo")
    ledger.open_study(fingerprint="f", spec={}, tags={}, artifact_location=(folder / "artifacts").as_uri())
    return ledger


@pytest.mark.slow
@pytest.mark.parametrize(("trial", "state"), enumerate([names.COMPLETE, names.STOPPED, names.FAILED]))
def test_the_log_is_among_the_artifacts_however_the_trial_ended(
    trial: int, state: str, ledger: Ledger, tmp_path: Path
) -> None:
    folder = tmp_path / "0003"
    folder.mkdir()
    TrialLog(folder).write("first attempt\nTraceback: it broke")
    writer = TrialWriter(Ledger(ledger.tracking_uri, "demo"), folder, trial=trial, seed=0, params={}, tags={})
    writer.start()
    while len(ledger.trials()) == trial:
        time.sleep(0.05)
    record = ledger.trials()[trial]
    assert Path(record.tags[names.TAG_LOG]).read_text().endswith("it broke\n"), "while it runs, the tag says where"
    assert writer.finish(state)
    found = ledger.download(record.run_id, f"{names.LOG_ARTIFACTS}/{names.TRIAL_LOG}", tmp_path / "down")
    assert found.read_text() == (folder / names.TRIAL_LOG).read_text()
    TrialLog(folder).write("second attempt")
    again = TrialWriter(Ledger(ledger.tracking_uri, "demo"), folder, trial=trial, seed=0, params={}, tags={})
    again.start()
    assert again.finish(state)
    found = ledger.download(record.run_id, f"{names.LOG_ARTIFACTS}/{names.TRIAL_LOG}", tmp_path / "down")
    assert found.read_text().endswith("second attempt\n")
