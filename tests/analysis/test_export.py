"""Export: what is written is what was measured, and nothing of the user's is ever replaced."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from made_studies import MakeStudy

from analysis.export import check_replaceable, main, replace_folder
from study import metrics
from study.config import DataConfig, EvaluationConfig, TrialConfig
from study.data import open_card_data
from study.errors import EXIT_BAD_INPUT, InputError, run_command
from study.ledger import Ledger
from study.training.checkpoint import load_model

CONFIG = TrialConfig(
    network="tiny",
    epochs=1,
    lr=0.05,
    data=DataConfig(train_images=64, validation_images=40),
    evaluation=EvaluationConfig(methods=("grad_cam",), images=20),
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], dict[str, float]]:
    """Files and scores of a real, very short training."""
    from study.trial import Trial

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trial")
    trial = Trial(CONFIG, folder, device=torch.device("cpu"))
    trial.step()
    return trial.export(folder), trial.history[-1]


@pytest.fixture
def study(make_study: MakeStudy, trained: tuple[list[Path], dict[str, float]]) -> Ledger:
    files, scores = trained
    return make_study([(metrics.COMPLETE, CONFIG.to_dict(), scores, files), (metrics.STOPPED, {}, {}, [])])


def changed_card(files: list[Path], folder: Path, **changes: object) -> list[Path]:
    """Copies of a network's files whose card says something else."""
    folder.mkdir()
    weights, card = (next(f for f in files if f.name == n) for n in (metrics.MODEL_FILE, metrics.MODEL_CONFIG_FILE))
    (folder / weights.name).write_bytes(weights.read_bytes())
    (folder / card.name).write_text(json.dumps({**json.loads(card.read_text()), **changes}))
    return [folder / weights.name, folder / card.name]


@pytest.mark.slow
def test_an_exported_network_is_the_trained_one_with_its_test_scores(
    study: Ledger, trained: tuple[list[Path], dict[str, float]], storage: Path, tmp_path: Path
) -> None:
    out = tmp_path / "exported"
    for openings in (1, 2):  # the second time replaces the first
        assert main(["demo", "--out", str(out), "--storage", str(storage)]) == 0
        assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "trial-0000"]
        tags = study.record().tags
        assert sum(t.startswith("study.test_opening/") for t in tags) == openings
    manifest = json.loads((out / "manifest.json").read_text())
    (entry,) = manifest["networks"]
    assert entry["max_logit_difference"] <= 1e-5
    for name, digest in entry["sha256"].items():
        assert hashlib.sha256((out / "trial-0000" / name).read_bytes()).hexdigest() == digest
    network, card = load_model(out / "trial-0000")
    original, _ = load_model(trained[0][0].parent)
    x_NCHW = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(x_NCHW), original(x_NCHW))
    assert card["config"] == CONFIG.to_dict()
    assert card["test_scores"] == entry["test_scores"]
    assert 0 <= card["test_scores"]["accuracy"] <= 100
    assert card["test_scores"]["faithfulness_images"] == 20
    assert card["test_scores"]["protocol"] == card["protocol"]
    assert card["scores"]["val/accuracy"] == trained[1]["val/accuracy"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".exported")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"check": {"images": [0, 1], "logits": [[0.0] * 10, [0.0] * 10]}}, "logits differ"),
        ({"data_fingerprint": "0" * 64}, "not that of the study's images"),
        ({"sha256": "0" * 64}, "damaged"),
    ],
)
def test_a_network_that_cannot_be_proven_is_not_exported(
    changes: dict[str, object],
    message: str,
    make_study: MakeStudy,
    trained: tuple[list[Path], dict[str, float]],
    storage: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, scores = trained
    tampered = changed_card(files, tmp_path / "tampered", **changes)
    ledger = make_study([(metrics.COMPLETE, CONFIG.to_dict(), scores, tampered)])
    command = ["demo", "--out", str(tmp_path / "exported"), "--storage", str(storage)]
    assert run_command(main, command) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results", "tampered"]
    assert not any(t.startswith("study.test_opening/") for t in ledger.record().tags)  # refused before the look


def test_a_study_without_a_front_exports_nothing(make_study: MakeStudy, storage: Path, tmp_path: Path) -> None:
    make_study([(metrics.FAILED, {}, {}, [])])
    with pytest.raises(InputError, match="no complete trial"):
        main(["demo", "--out", str(tmp_path / "exported"), "--storage", str(storage)])
    assert not (tmp_path / "exported").exists()


def test_only_an_export_of_the_same_study_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_replaceable(out, "demo")
    out.mkdir()
    check_replaceable(out, "demo")
    manifest = {"study": "demo", "networks": [{"folder": "trial-0001"}]}
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="other files"):
        check_replaceable(out, "demo")
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"thesis\.tex is not part"):
        check_replaceable(out, "demo")
    (out / "thesis.tex").rename(tmp_path / "thesis.tex")
    (out / "trial-0001").mkdir()
    check_replaceable(out, "demo")
    with pytest.raises(InputError, match="export of study 'demo'"):
        check_replaceable(out, "other")
    with pytest.raises(InputError, match="is a file"):
        check_replaceable(tmp_path / "thesis.tex", "demo")


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        part = tmp_path / ".out.part"
        part.mkdir()
        (part / text).write_text(text)
        replace_folder(part, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]


def test_other_data_is_refused() -> None:
    card = {"config": CONFIG.to_dict(), "data_fingerprint": "0" * 64}
    with pytest.raises(InputError, match="--data shapes: its content is not that of the study"):
        open_card_data(card, "shapes")
