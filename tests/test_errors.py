"""Refusals carry where and what as data, and say whose doing they are."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from study.command import EXIT_BAD_INPUT, EXIT_CLOSED_PIPE, run_command
from study.errors import ArtifactError, InputError, LedgerError, StorageError, StudyError, UnavailableError
from study.spec.study_spec import load_spec
from study.storage.atomic import write_atomically

EXAMPLE = (Path(__file__).parent / "spec" / "example.yaml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "key", "line"),
    [
        ("[0.02, 0.5]", "[0.5, 0.02]", "space.lr.float", 8),
        ("[tiny, small]", "[tiny, smal]", "space.network", 6),
        ("batch_size: 32", "batch_size: 0", "fixed.batch_size", 15),
        ("reg_weight > 0", "reg_wt > 0", "space.reg_error.when", 13),
        ("[grad_cam, ", "[gradcam, ", "evaluation.methods", 19),
    ],
)
def test_a_refused_specification_names_its_key_and_line(
    tmp_path: Path, old: str, new: str, key: str, line: int
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(EXAMPLE.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_spec(file)
    error = caught.value
    assert (error.key, error.file, error.line) == (key, file, line)
    assert str(error) == f"{file}:{line}: {key}: {error.message}"


def test_the_line_is_made_of_its_parts() -> None:
    assert str(InputError("bad")) == "bad"
    assert str(InputError("bad", key="lr")) == "lr: bad"
    assert str(StorageError("full", file="a.json")) == "a.json: full"
    error = InputError("bad", key="space.lr", file=Path("a.yaml"), line=3)
    assert str(error) == "a.yaml:3: space.lr: bad"
    again = pickle.loads(pickle.dumps(error))  # as it comes from another process
    assert (str(again), again.key, again.file, again.line) == (str(error), error.key, error.file, error.line)


def test_a_full_disk_is_not_the_users_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        write_atomically(tmp_path / "a", b"x")
    assert not isinstance(caught.value, (InputError, ValueError))
    assert caught.value.file == tmp_path / "a" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [InputError, ArtifactError, UnavailableError, StorageError, LedgerError])
def test_every_kind_is_one_line_and_exit_2(kind: type[StudyError], capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: object) -> int:
        raise kind("what is wrong\nand what to do", key="place")

    assert run_command(main, []) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == "error: place: what is wrong and what to do\n"


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "while it prints"])
def test_a_command_whose_reader_has_gone_ends_without_a_word(unbuffered: str) -> None:
    """``COMMAND | head -0``."""
    reading, writing = os.pipe()
    os.close(reading)
    program = "import sys; from study.command import run_command; sys.exit(run_command(lambda argv: print('a front')))"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered}, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (EXIT_CLOSED_PIPE, b"")


def test_a_server_that_hangs_up_is_no_closed_pipe() -> None:
    def main(argv: object) -> int:
        raise BrokenPipeError("the server has gone")

    with pytest.raises(BrokenPipeError):
        run_command(main)
