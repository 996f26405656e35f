"""What cannot be proven is not exported: nothing is written, the test split stays closed, no foreign code runs."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
from made_studies import MakeStudy

from analysis.export import main
from study import names
from study.command import EXIT_BAD_INPUT, run_command
from study.config import TrialConfig
from study.data import open_card_data
from study.errors import InputError
from study.ledger import Ledger
from tests.payload import Payload

Trained = tuple[list[Path], dict[str, float]]


def changed(files: list[Path], folder: Path, *, weights: bytes | None = None, **changes: object) -> list[Path]:
    """Copies of a network's files whose card says something else, or whose weights are something else."""
    folder.mkdir()
    old, card = (next(f for f in files if f.name == n) for n in (names.MODEL_FILE, names.MODEL_CONFIG_FILE))
    (folder / old.name).write_bytes(old.read_bytes() if weights is None else weights)
    (folder / card.name).write_text(json.dumps({**json.loads(card.read_text()), **changes}))
    return [folder / old.name, folder / card.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"check": {"images": [0, 1], "logits": [[0.0] * 10, [0.0] * 10]}}, "logits differ"),
        ({"data_fingerprint": "0" * 64}, "not that of the study's images"),
        ({"sha256": "0" * 64}, "damaged"),
        ({"check": {}}, "is not one of this program"),
        ({"config": {"network": "tiny"}}, "is not one of this program"),
        ({"mean": "grey"}, "is not one of this program"),
    ],
)
def test_a_network_that_cannot_be_proven_is_not_exported(
    changes: dict[str, object],
    message: str,
    make_study: MakeStudy,
    trained: Trained,
    config: TrialConfig,
    storage: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, scores = trained
    tampered = changed(files, tmp_path / "tampered", **changes)
    ledger = make_study([(names.COMPLETE, config.to_dict(), scores, tampered)])
    assert message in refused(storage, tmp_path, capsys, ledger)


@pytest.mark.slow
@pytest.mark.parametrize("hash_fits", [False, True])
def test_a_checkpoint_with_pickled_code_is_refused_and_never_executed(
    hash_fits: bool,
    make_study: MakeStudy,
    trained: Trained,
    config: TrialConfig,
    storage: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, scores = trained
    trace = tmp_path / "executed"
    weights = pickle.dumps(Payload(trace))
    change = {"sha256": hashlib.sha256(weights).hexdigest()} if hash_fits else {}
    ledger = make_study(
        [(names.COMPLETE, config.to_dict(), scores, changed(files, tmp_path / "tampered", weights=weights, **change))]
    )
    message = refused(storage, tmp_path, capsys, ledger)
    assert ("not a safetensors file" if hash_fits else "damaged") in message
    assert not trace.exists()
    pickle.loads(weights)  # the payload works
    assert trace.exists()


def refused(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ledger: Ledger) -> str:
    before = sorted(p.name for p in tmp_path.iterdir())
    command = ["demo", "--out", str(tmp_path / "exported"), "--storage", str(storage)]
    assert run_command(main, command) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert not any(t.startswith("study.test_opening/") for t in ledger.record().tags)
    assert not (storage / "demo" / names.TEST_LOG_FILE).exists()
    return error


def test_a_study_without_a_front_exports_nothing(make_study: MakeStudy, storage: Path, tmp_path: Path) -> None:
    make_study([(names.FAILED, {}, {}, [])])
    with pytest.raises(InputError, match="no complete trial"):
        main(["demo", "--out", str(tmp_path / "exported"), "--storage", str(storage)])
    assert not (tmp_path / "exported").exists()


def test_other_data_is_refused(config: TrialConfig) -> None:
    card = {"config": config.to_dict(), "data_fingerprint": "0" * 64}
    with pytest.raises(InputError, match="--data shapes: its content is not that of the study"):
        open_card_data(card, "shapes")
