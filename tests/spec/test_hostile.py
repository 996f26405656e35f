"""What a careless or hostile hand may write: every one is refused in one line that names the key."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from study.command import EXIT_BAD_INPUT, run_command
from study.errors import InputError
from study.spec.study_spec import load_spec

EXAMPLE = (Path(__file__).parents[1] / "spec" / "example.yaml").read_text()
METHODS = "methods: [grad_cam, grad_cam_plus_plus]"

CASES = {
    "methods are nothing": (METHODS, "methods: null", ["spec.yaml:19", "evaluation.methods", "not a list"]),
    "methods are a word": (METHODS, "methods: grad_cam", ["evaluation.methods", "'grad_cam' is not a list"]),
    "methods are mappings": (METHODS, "methods: [{a: 1}]", ["evaluation.methods", "grad_cam_plus_plus"]),
    "milestones are a number": ("batch_size: 32", "milestones: 5", ["fixed.milestones", "5 is not a list"]),
    "a condition that orders words": ("reg_weight > 0}", "network > 0}", ["space.reg_error.when", "network has words"]),
    "a list for a key": ("seed: 0", "[a, b]: 3", ["spec.yaml:24", "a key must be a word"]),
    "true for a number of trials": ("trials: 8", "trials: true", ["budget.trials", "True"]),
    "true for a number of epochs": ("max_epochs: 6", "max_epochs: true", ["fidelity.max_epochs", "True"]),
    "a number in quotes": ("trials: 8", "trials: '8'", ["budget.trials", "'8'"]),
    "objectives are a list": (
        "{accuracy: maximize, faithfulness: maximize}", "[accuracy]", ["objectives", "a mapping is needed"],
    ),
    "rungs are a word": ("rungs: [3]", "rungs: three", ["fidelity.rungs", "a list is needed"]),
    "three bounds": ("[0.02, 0.5]", "[0.1, 0.2, 0.3]", ["space.lr", "too many values"]),
    "no choices": ("[tiny, small]", "[]", ["space.network.choice: []", "too few values"]),
    "a list among choices": ("[tiny, small]", "[[tiny]]", ["space.network", "['tiny']", "a number, a word"]),
    "a list in a known point": ("seed: 0", "known_points: [{lr: [0.1]}]", ["known_points.0.lr", "a number, a word"]),
    "an unknown key of stopping": ("seed: 0", "stopping: {rate: 1}", ["stopping.rate", "reduction, brackets"]),
    "an unknown key of a constraint": ("{min: 32.5}", "{low: 3}", ["constraints", "min, max"]),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "parts"), CASES.values(), ids=list(CASES))
def test_one_line_that_names_the_key(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    assert old in EXAMPLE
    file = tmp_path / "spec.yaml"
    file.write_text(EXAMPLE.replace(old, new))
    with pytest.raises(InputError) as refusal:
        load_spec(file)
    for part in parts:
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


OPTIONS = [
    ("study.run", ["--name", ""], "--name: is empty"),
    ("study.run", ["--storage", ""], "--storage: is empty"),
    ("study.run", ["--tracking-uri", " "], "--tracking-uri: is empty"),
    ("study.run", ["--time-budget", ""], "--time-budget: is empty"),
    ("study.run", [""], "error: spec: is empty"),
    ("study.run", ["--name", "x" * 300], "longer than the 200 bytes"),
    ("study.run", ["--trials", "many"], "--trials: invalid int value: 'many'"),
    ("study.run", ["--price", "3"], "--price: is for a plan"),
    ("study.run", ["--trials", "3", "two.yaml"], "unrecognized arguments: two.yaml"),
    ("study.train", ["--out", ""], "--out: is empty"),
    ("study.train", ["--bogus"], "unrecognized arguments: --bogus"),
    ("study.evaluate", [], "required: NETWORK"),
    ("study.evaluate", ["somewhere", "--data", ""], "--data: is empty"),
    ("study.run", ["--storage", "~nobody-of-that-name/x"], "--storage ~nobody-of-that-name/x: there is no such user"),
    ("study.status", ["--bogus"], "unrecognized arguments: --bogus"),
    ("study.status", ["--storage", ""], "--storage: is empty"),
    ("study.ui", ["--port", "many"], "--port: invalid int value: 'many'"),
    ("study.ui", ["--storage", "~nobody-of-that-name"], "there is no such user"),
    ("analysis.verify", [], "required: DIR"),
    ("analysis.verify", [""], "error: folder: is empty"),
    ("analysis.export", ["demo"], "required: --out"),
    ("analysis.export", ["demo", "--out", ""], "--out: is empty"),
    ("analysis.export", ["demo", "--out", "~nobody-of-that-name/x"], "there is no such user"),
    ("analysis.report", ["demo", "--out", "~nobody-of-that-name/x"], "there is no such user"),
]


@pytest.mark.parametrize(("command", "arguments", "words"), OPTIONS)
def test_options_are_refused_in_one_line(
    command: str, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(EXAMPLE)
    given = ["spec.yaml", *arguments] if command == "study.run" and arguments[0].startswith("--") else arguments
    main = importlib.import_module(command).main
    assert run_command(main, given) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert [p.name for p in tmp_path.iterdir()] == ["spec.yaml"]
