"""The folder appears as a whole, and nothing of the user's is ever replaced."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.export import folder as folders
from analysis.export.folder import check_replaceable, replace_folder, staged
from analysis.export.manifest import verify, write_manifest
from study.errors import InputError, StorageError, UnavailableError

ROOT = Path(__file__).parents[3]


def export(out: Path, study: str = "demo") -> None:
    with staged(out) as part:
        (part / "trial-0001").mkdir()
        (part / "trial-0001" / "model.onnx").write_text("weights")
        write_manifest(part, {"study": study})
        replace_folder(part, out)


def test_only_an_export_of_the_same_study_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_replaceable(out, "demo")
    out.mkdir()
    check_replaceable(out, "demo")
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="other files"):
        check_replaceable(out, "demo")
    (out / "thesis.tex").rename(tmp_path / "thesis.tex")
    export(out)
    check_replaceable(out, "demo")
    (out / "trial-0001" / "notes.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"trial-0001/notes\.txt is not part"):
        check_replaceable(out, "demo")
    (out / "trial-0001" / "notes.txt").unlink()
    with pytest.raises(InputError, match="export of study 'demo'"):
        check_replaceable(out, "other")
    with pytest.raises(InputError, match="is a file"):
        check_replaceable(tmp_path / "thesis.tex", "demo")


def test_an_export_of_the_first_format_is_replaced_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "trial-0001").mkdir(parents=True)
    (out / "trial-0001" / "model.json").write_text("{}")
    network = {"folder": "trial-0001", "sha256": {"model.json": "0"}}
    (out / "manifest.json").write_text(json.dumps({"study": "demo", "networks": [network]}))
    check_replaceable(out, "demo")
    (out / "trial-0001" / "notes.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"notes\.txt is not part"):
        check_replaceable(out, "demo")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    for text in ("old", "new"):
        with staged(tmp_path / "out") as part:
            (part / text).write_text(text)
            replace_folder(part, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]


def test_a_failed_export_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    export(tmp_path / "out")
    stage = staged(tmp_path / "out")
    (stage.__enter__() / "half").write_text("half")
    failure = RuntimeError()
    assert not stage.__exit__(RuntimeError, failure, None)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    verify(tmp_path / "out")


def test_after_a_kill_between_two_renames_the_old_folder_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(out)
    out.rename(tmp_path / ".out.old")
    with staged(out):
        verify(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_exports_to_one_folder_do_not_meet(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as part:
        (part / "mine").write_text("mine")
        with pytest.raises(UnavailableError, match="another export to it is under way"), staged(out):
            pass
        assert (part / "mine").exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="--out .*/file/out: cannot be written"), staged(tmp_path / "file" / "out"):
        pass


def test_a_disk_with_too_little_space_is_refused_first(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"only \d+ MiB are free there and about \d+ are needed"),
        staged(tmp_path / "out", needed=2**60),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left on device"), staged(tmp_path / "out"):
        Path("/dev/full").write_text("x" * 10_000)
    assert list(tmp_path.iterdir()) == []


_LOOP = """
import sys
from pathlib import Path
from analysis.export.folder import replace_folder, staged
from analysis.export.manifest import write_manifest
out, n = Path(sys.argv[1]), 0
while True:
    n += 1
    with staged(out) as part:
        for i in range(5):
            (part / f"file-{i}").write_text(f"{n} " * 1000)
        write_manifest(part, {"study": "demo", "n": n})
        replace_folder(part, out)
    print(n, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_killed_at_any_moment_there_is_a_whole_export(kills: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chance = random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", _LOOP, str(out)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline()  # the first of this process is there
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        manifest = verify(out)
        assert {(out / f"file-{i}").read_text().split()[0] for i in range(5)} == {str(manifest["n"])}
        check_replaceable(out, "demo")
    export(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
