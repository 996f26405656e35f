"""The specification: what is accepted, and the one line that says what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.config import TrialConfig
from study.errors import InputError
from study.spec.space import Condition, complete
from study.spec.study_spec import StudySpec, load_spec, parse_duration
from study.storage.study_file import differing

SPECS = Path(__file__).parents[2] / "search_spaces"
EXAMPLE_FILE = Path(__file__).with_name("example.yaml")
EXAMPLE = EXAMPLE_FILE.read_text()


def write(folder: Path, old: str = "", new: str = "") -> Path:
    assert old in EXAMPLE
    file = folder / "spec.yaml"
    file.write_text(EXAMPLE.replace(old, new) if old else EXAMPLE)
    return file


@pytest.mark.parametrize("name", ["quick", "laptop", "cifar100", "paper"])
def test_shipped_specifications_are_valid(name: str) -> None:
    spec = load_spec(SPECS / f"{name}.yaml")
    weights = [point["reg_weight"] for point in spec.first_points()]
    assert 0 in weights and 7.5e-3 in weights
    for point in spec.first_points():
        assert isinstance(spec.trial_config(point), TrialConfig)


@pytest.mark.parametrize("name", ["quick", "laptop", "cifar100", "paper"])
@pytest.mark.parametrize("rungs", [True, False])
def test_what_is_recorded_is_read_back(name: str, rungs: bool) -> None:
    spec = load_spec(SPECS / f"{name}.yaml")
    if not rungs:
        values = spec.model_dump(mode="json", by_alias=True, exclude={"stopping"})
        spec = StudySpec.model_validate({**values, "fidelity": {"max_epochs": 4}})
    recorded = json.loads(json.dumps(spec.model_dump(mode="json", by_alias=True)))
    again = StudySpec.recorded(recorded)
    assert again.identity("d") == spec.identity("d") and again.first_points() == spec.first_points()
    assert again.model_dump(mode="json", by_alias=True) == recorded


BAD = {
    "unknown key": ("seed: 0", "sed: 0", ["spec.yaml:24", "sed", "unknown key", "seed"]),
    "wrong type": ("trials: 8", "trials: many", ["budget.trials", "'many'", "integer"]),
    "bounds reversed": ("[0.02, 0.5]", "[0.5, 0.02]", ["space.lr", "[0.5, 0.02]", "write [0.02, 0.5]"]),
    "log scale with 0": ("[5.0e-3, 1]", "[0, 10]", ["space.reg_weight", "log scale", "zero: true"]),
    "condition on unknown": ("reg_weight > 0", "reg_wt > 0", ["space.reg_error.when", "'reg_wt'", "reg_weight"]),
    "condition on itself": ("reg_weight > 0", "reg_error == mse", ["space.reg_error.when", "circle"]),
    "condition unreadable": ("reg_weight > 0", "reg_weight maybe", ["space.reg_error.when", "not a condition"]),
    "unknown network": ("[tiny, small]", "[tiny, smal]", ["space.network", "'smal'", "small", "resnet18"]),
    "unknown error function": ("[cosine, mse]", "[cosine, hinge]", ["space.reg_error", "'hinge'", "histogram"]),
    "unknown objective": ("accuracy: maximize", "acuracy: maximize", ["objectives", "'acuracy'", "accuracy"]),
    "wrong direction": ("accuracy: maximize", "accuracy: minimize", ["objectives", "worse direction"]),
    "unknown parameter": ("batch_size: 32", "batch_sze: 32", ["fixed.batch_sze", "batch_size"]),
    "out of range": ("batch_size: 32", "batch_size: 0", ["fixed.batch_size", "0 is out of range"]),
    "unknown protocol": ("protocol: paper", "protocol: papr", ["evaluation.protocol", "'papr'", "paper"]),
    "unknown method": ("[grad_cam, ", "[gradcam, ", ["evaluation.methods", "'gradcam'", "grad_cam"]),
    "unknown data key": ("source: shapes", "sorce: shapes", ["data.sorce", "source"]),
    "rung beyond the end": ("rungs: [3]", "rungs: [40]", ["rungs", "40", "5"]),
    "duplicate key": ("seed: 0", "seed: 0\nseed: 1", ["spec.yaml:24", "'seed' is given twice"]),
    "not YAML": ("space:", "space: [", ["not valid YAML"]),
    "two kinds": ("{choice: [tiny, small]}", "{choice: [tiny], int: [1, 2]}", ["space.network", "exactly one"]),
    "bad duration": ("time: 30m", "time: soon", ["budget.time", "'soon'", "30m"]),
    "range without the baseline": (", zero: true}", "}", ["space.reg_weight", "must contain 0"]),
}


@pytest.mark.parametrize(("old", "new", "parts"), BAD.values(), ids=list(BAD))
def test_bad_specification_is_one_clear_line(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_spec(write(tmp_path, old, new))
    message = str(caught.value)
    assert "\n" not in message
    for part in ["spec.yaml:", *parts]:
        assert part in message, message


def test_missing_file_and_wrong_shape(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such specification"):
        load_spec(tmp_path / "none.yaml")
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n")
    with pytest.raises(InputError, match="mapping of keys"):
        load_spec(file)


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, "batch_size: 32", "batch_size: 32, weight_decay: 1e-4"))
    assert spec.fixed["weight_decay"] == 1e-4


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path), overrides={"budget.trials": 3, "seed": 7, "data.source": None})
    assert (spec.budget.trials, spec.seed, spec.data_config.source) == (3, 7, "shapes")


def test_a_data_folder_is_meant_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_spec(write(tmp_path), overrides={"data.source": "images"})
    assert spec.data_config.source == str(tmp_path / "images")


def test_fingerprint_follows_what_determines_a_result(tmp_path: Path) -> None:
    base = load_spec(write(tmp_path)).fingerprint("content")

    def changed(old: str, new: str) -> bool:
        return load_spec(write(tmp_path, old, new)).fingerprint("content") != base

    assert changed("[0.02, 0.5]", "[0.02, 0.6]")
    assert changed("max_epochs: 6", "max_epochs: 9")
    assert changed("protocol: paper", "protocol: rise")
    assert changed("seed: 0", "seed: 1")
    assert load_spec(write(tmp_path)).fingerprint("other content") != base
    assert not changed("trials: 8", "trials: 80")
    assert not changed("cpus: 1", "cpus: 2")
    assert not changed("source: shapes", "source: elsewhere")
    assert not changed("time: 30m", "time: 3h")


def test_conditional_parameters_exist_only_where_they_hold() -> None:
    spec = load_spec(EXAMPLE_FILE)
    assert "reg_error" not in complete(spec.space, {"reg_weight": 0.0})
    assert complete(spec.space, {"reg_weight": 1.0})["reg_error"] == "cosine"


def test_conditions() -> None:
    assert Condition.parse("lr >= 1e-2").holds(0.01)
    assert not Condition.parse("network != tiny").holds("tiny")
    with pytest.raises(ValueError, match="orders a word"):
        Condition.parse("network > tiny")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_weighted_sum_is_one_objective() -> None:
    spec = load_spec(EXAMPLE_FILE, overrides={"scalarize": {"accuracy": 1.0, "faithfulness": 2.0}})
    assert [m.name for m in spec.targets] == ["score"]
    assert spec.target_values({"val/accuracy": 50.0, "val/faithfulness": 4.0}) == [58.0]


def test_grid_has_each_point_once() -> None:
    points = load_spec(SPECS / "paper.yaml").first_points()
    assert len(points) == 2 * 3 * (1 + 4 * 4)
    assert len({tuple(sorted(p.items())) for p in points}) == len(points)


def test_trial_config_round_trip() -> None:
    spec: StudySpec = load_spec(EXAMPLE_FILE)
    for point in spec.first_points():
        config = spec.trial_config(point)
        assert TrialConfig.from_dict(config.to_dict()) == config


def test_a_parameter_that_a_specification_does_not_name_is_no_part_of_its_identity() -> None:
    """A study that was begun before the parameter existed is continued under the same name."""
    text = json.dumps(load_spec(EXAMPLE_FILE).identity("content"))
    assert "crop_padding" in text and not any(name in text for name in ("crop_mode", "norm_lr_multiple", "gamma"))


def test_identity_survives_a_file() -> None:
    identity = load_spec(EXAMPLE_FILE).identity("content")
    assert json.loads(json.dumps(identity)) == identity
    assert identity["space"]["lr"]["float"] == [0.02, 0.5]


def test_a_specification_that_names_no_gradient_gets_the_default_and_an_older_study_of_it_is_another(
    tmp_path: Path,
) -> None:
    """A study begun before the choice existed ran with ``batch``; it is not continued with another gradient."""
    spec = load_spec(write(tmp_path, "reg_gradient: constant, ", ""))
    assert spec.fixed["reg_gradient"] == "constant"
    now = spec.identity("content")
    before = {**now, "fixed": {k: v for k, v in now["fixed"].items() if k != "reg_gradient"}}
    assert differing(now, before) == ["fixed.reg_gradient"]
    named = load_spec(write(tmp_path, "reg_gradient: constant, ", "reg_gradient: batch, ")).identity("content")
    assert differing(named, before) == []
