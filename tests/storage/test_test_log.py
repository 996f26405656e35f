"""The log of openings of the test split: appended to, never edited."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from study.errors import ArtifactError, StorageError
from study.storage.test_log import append, openings


def test_every_opening_stays(tmp_path: Path) -> None:
    file = tmp_path / "study" / "test_openings.jsonl"
    assert openings(file) == []
    for n in (1, 2, 3):
        before = file.read_bytes() if file.exists() else b""
        append(file, {"trial": n})
        assert len(openings(file)) == n
        assert file.read_bytes().startswith(before)
    assert [entry["trial"] for entry in openings(file)] == [1, 2, 3]


def test_openings_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    file = tmp_path / "log"
    threads = [threading.Thread(target=append, args=(file, {"trial": n})) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry["trial"] for entry in openings(file)) == list(range(20))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[1:], "line 1 does not follow"),
        (lambda lines: [lines[0], lines[2]], "line 2 does not follow"),
        (lambda lines: [lines[0].replace(b"1", b"7", 1), *lines[1:]], "line 2 does not follow"),
        (lambda lines: [*lines[:2], b"nonsense\n"], "line 3 does not follow"),
        (lambda lines: [*lines[:2], lines[2][:-5]], "cut off"),
    ],
)
def test_an_edited_log_is_refused_and_left(edit: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    for n in (1, 2, 3):
        append(file, {"trial": n})
    edited = b"".join(edit(file.read_bytes().splitlines(keepends=True)))  # type: ignore[operator]
    file.write_bytes(edited)
    with pytest.raises(ArtifactError, match=message):
        openings(file)
    with pytest.raises(ArtifactError, match=message):
        append(file, {"trial": 4})
    assert file.read_bytes() == edited


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="the test split is not opened"):
        append(tmp_path / "file" / "log", {"trial": 1})
