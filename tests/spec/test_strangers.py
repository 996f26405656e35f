"""Specifications that a stranger sends: one line, exit 2, soon; nothing is executed and nothing written."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from study.command import EXIT_BAD_INPUT, run_command
from study.run import main

EXAMPLE = (Path(__file__).parents[1] / "spec" / "example.yaml").read_text()


def instead(old: str, new: str) -> str:
    assert old in EXAMPLE
    return EXAMPLE.replace(old, new)


def bomb(levels: int = 9) -> str:
    """A list of ten lists of ten lists ...: a few hundred bytes that stand for 10^levels words."""
    lists = [f"&a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "[" + ", ".join(["&a0 [x,x,x,x,x,x,x,x,x,x]", *lists]) + "]"


CASES = {
    "a call": (instead("seed: 0", "seed: !!python/object/apply:os.mkdir [executed]"), "could not determine a constr"),
    "an object": ("!!python/object/new:os.mkdir [executed]", "could not determine a constructor"),
    "a module": (instead("seed: 0", "seed: !!python/module:antigravity"), "could not determine a constructor"),
    "a tag of its own": (instead("seed: 0", "seed: !exec 0"), "could not determine a constructor"),
    "aliases of aliases": (instead("batch_size: 32", f"batch_size: {bomb()}"), "spec.yaml:15: more than 20000 values"),
    "an alias of itself": (instead("batch_size: 32", "batch_size: &a [*a]"), "recursive"),
    "many values": (instead("[tiny, small]", f"[{'1,' * 20_000}]"), "more than 20000 values"),
    "a large file": (EXAMPLE + "#" * (1 << 20), "larger than 1 MiB"),
    "deep lists": (instead("batch_size: 32", "batch_size: " + "[" * 100_000), "nested deeper than 32"),
    "deep mappings": (instead("batch_size: 32", "batch_size: " + "{a: " * 5000), "nested deeper than 32"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(500)), "nested deeper than 32"),
    "a number of many digits": (instead("trials: 8", f"trials: {'9' * 5000}"), "spec.yaml:23: not valid YAML: '9999"),
    "a large number": (instead("[0.02, 0.5]", f"[0.02, {'9' * 4000}]"), "space.lr"),
    "a number past all": (instead("[0.02, 0.5]", "[0.02, 1e999]"), "finite"),
    "no number": (instead("seed: 0", "seed: .nan"), "seed"),
    "not what its tag says": (instead("seed: 0", "seed: !!int word"), "'word' cannot be read as int"),
    "a day that is not": (instead("seed: 0", "seed: 2026-99-99"), "cannot be read as timestamp"),
    "a screen cleared in a key": (instead("seed: 0", '"\\e[2J\\e]0;mine\\a": 0'), "spec.yaml:24: the value '\\x1b[2J"),
    "a screen cleared in a value": (instead("source: shapes", 'source: "\\e[2J"'), "U+001B"),
    "a NUL": (instead("source: shapes", 'source: "/etc\\0/passwd"'), "U+0000"),
    "a second line": (instead("source: shapes", 'source: "shapes\\nerror: all is well"'), "U+000A"),
    "text that runs backwards": (instead("source: shapes", 'source: "\u202epath"'), "U+202E"),
    "half a character": (instead("[tiny, small]", '["\\ud800"]'), "U+D800"),
    "bytes that are no text": (EXAMPLE + "\udcff", "cannot be read: 'utf-8'"),
    "a raw NUL": (EXAMPLE + "\0", "not valid YAML: special characters are not allowed"),
    "a path that is too long": (instead("source: shapes", f"source: /{'x' * 5000}"), "no such folder"),
    "somebody's home": (instead("source: shapes", "source: ~nobody-of-that-name/x"), "no such user's home"),
    "somewhere else": (instead("source: shapes", "source: ../../../../../proc"), "has no train*.parquet"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), CASES.values(), ids=list(CASES))
def test_a_hostile_specification_is_one_line(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_bytes(text.encode(errors="surrogateescape"))
    start = time.monotonic()
    assert run_command(main, ["spec.yaml", "--local"]) == EXIT_BAD_INPUT
    assert time.monotonic() - start < 10
    refused_in_one_line(capsys, words)
    assert {p.name for p in tmp_path.iterdir()} <= {"spec.yaml", "results"}
    assert not any((tmp_path / "results").glob("*"))


def refused_in_one_line(capsys: pytest.CaptureFixture[str], words: str) -> None:
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ") and words in line
    assert line.isprintable() and len(line) < 1100


NAMES = ["../x", "a/b", "/tmp/x", "..", ".hidden", "x\n", "x\0y", "\x1b[2J", "a b", "\u202ex", "x" * 300]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", ["--name", "--fork", "--warm-start"])
def test_a_name_that_is_no_folders_is_refused(
    option: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    (tmp_path / "spec.yaml").write_text(EXAMPLE)
    assert run_command(main, ["../spec.yaml", "--local", f"{option}={name}"]) == EXIT_BAD_INPUT
    refused_in_one_line(capsys, f"error: {option} ")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["inside", "spec.yaml"]


def test_a_file_named_after_an_escape_is_shown_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(main, ["\x1b[2Jgone.yaml"]) == EXIT_BAD_INPUT
    refused_in_one_line(capsys, "\\x1b[2Jgone.yaml: no such specification")
    assert run_command(main, ["/dev/zero"]) == EXIT_BAD_INPUT  # a file without end
    refused_in_one_line(capsys, "larger than 1 MiB")


def test_what_an_honest_hand_writes_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aliases, non-ASCII words and a specification as large as any are."""
    from study.spec.study_spec import load_spec

    monkeypatch.chdir(tmp_path)
    points = "\n".join(f"  - {{lr: {0.02 + i / 10_000}, network: tiny}}" for i in range(2000))
    text = instead("[tiny, small]", "&nets [tiny, small]") + f"known_points:\n{points}\n"
    text = text.replace("source: shapes", "source: données λ/éß").replace("batch_size: 32", "milestones: &e [0.3, 0.5]")
    (tmp_path / "spec.yaml").write_text(text)
    spec = load_spec(tmp_path / "spec.yaml")
    assert len(spec.known_points) == 2000 and spec.data_config.source == str(tmp_path / "données λ/éß")
