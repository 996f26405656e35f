"""Which study a name stands for, also after versions that have more parameters."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from study import names
from study.config import DEFAULTS, TrialConfig, fingerprint
from study.errors import InputError
from study.ledger.records import flatten, parse
from study.spec.study_spec import StudySpec
from study.storage.storage import Storage
from study.storage.study_file import check_same_study, differing

SPEC: dict[str, Any] = {
    "objectives": {"accuracy": "maximize", "faithfulness": "maximize"},
    "space": {"lr": {"float": [0.1, 0.2]}},
    "fixed": {"network": "tiny", "batch_size": 64},
    "fidelity": {"max_epochs": 2},
    "budget": {"trials": 2},
}


def identity(**changes: Any) -> dict[str, Any]:
    return StudySpec.model_validate({**SPEC, **changes}).identity("d" * 64)


def older(whole: dict[str, Any]) -> dict[str, Any]:
    """As a version wrote it that had neither calibration nor masking on fewer images."""
    old = copy.deepcopy(whole)
    for name in ("masking_images", "shifts", "calibration_images"):
        del old["evaluation"][name]
    return old


def store(folder: Path, stored: dict[str, Any]) -> Storage:
    (folder / "k").mkdir()
    (folder / "k" / names.STUDY_FILE).write_text(json.dumps({"identity": stored, "fingerprint": fingerprint(stored)}))
    return Storage(folder)


def test_a_key_that_an_older_version_lacks_has_its_default(tmp_path: Path) -> None:
    now = identity()
    old = older(now)
    assert differing(now, old) == differing(old, now) == []
    assert check_same_study(store(tmp_path, old), "k", now, fingerprint(now)) == fingerprint(old)


@pytest.mark.parametrize("name", ["masking_images", "shifts", "calibration_images"])
def test_a_new_key_with_another_value_is_another_study(tmp_path: Path, name: str) -> None:
    now = identity(evaluation={name: 7})
    assert differing(now, older(now)) == [f"evaluation.{name}"]
    with pytest.raises(InputError, match=f"evaluation.{name}: {'null|1|500'} there, 7 now"):
        check_same_study(store(tmp_path, older(now)), "k", now, fingerprint(now))


def test_a_default_may_be_written_out() -> None:
    written = {"norm_lr_multiple": 1.0, "initialization": "default", "crop_mode": "zero", "reg_warmup_epochs": 0.0}
    assert differing(identity(fixed={**SPEC["fixed"], **written}), identity()) == []
    assert differing(identity(fixed={**SPEC["fixed"], "crop_mode": "reflect"}), identity()) == ["fixed.crop_mode"]
    searched = identity(space={**SPEC["space"], "momentum": {"float": [0.8, 0.9]}})
    assert "space.momentum.float" in differing(searched, identity())


def test_a_new_study_has_the_fingerprint_of_its_identity(tmp_path: Path) -> None:
    assert check_same_study(Storage(tmp_path), "k", identity(), "f" * 64) == "f" * 64


def test_defaults_are_those_of_a_recorded_training() -> None:
    recorded = {k: parse(v) for k, v in flatten(TrialConfig("tiny", 2, 0.1, reg_weight=1.0).to_dict()).items()}
    assert {k: recorded[k] for k in DEFAULTS} == {**DEFAULTS, "reg_weight": 1.0}
    assert recorded.keys() - DEFAULTS.keys() == {"network", "epochs", "lr", "reg_error"}
