"""What is at a path is the old content or the new one, and nothing else is left beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from study.storage.atomic import hidden_beside, move_into_place, replacing, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    with replacing(file) as part:
        part.write_text("new")
        assert file.read_text() == "old" and part.name.startswith(".") and part.parent == tmp_path
    assert file.read_text() == "new" and names(tmp_path) == ["file"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "folder") as part:
        (part / "inner").mkdir(parents=True)
        (part / "inner" / "file").write_text("content")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "content" and names(tmp_path) == ["folder"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_block_that_raises_changes_nothing(tmp_path: Path, kind: str) -> None:
    (tmp_path / kind).mkdir() if kind == "folder" else (tmp_path / kind).write_text("old")
    block = replacing(tmp_path / kind)
    part = block.__enter__()
    part.mkdir() if kind == "folder" else part.write_text("half")
    assert not block.__exit__(RuntimeError, RuntimeError(), None)
    assert names(tmp_path) == [kind] and (kind == "folder" or (tmp_path / kind).read_text() == "old")


def test_a_folder_that_is_not_empty_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(OSError, match="not empty"), replacing(tmp_path / "there") as part:
        part.mkdir()
    assert (tmp_path / "there" / "file").read_text() == "mine" and names(tmp_path) == ["there"]


def test_content_and_name_are_flushed_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and folder under the hidden name, then the rename, then the folder that holds the name."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        steps.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomically(tmp_path / "file", b"content")
    (hidden,) = set(steps) - {"rename", tmp_path.name}
    assert steps == [hidden, "rename", tmp_path.name]
    steps.clear()
    with hidden_beside(tmp_path / "folder") as part:
        (part / "inner").mkdir(parents=True)
        (part / "inner" / "file").write_text("content")
        move_into_place(part, tmp_path / "folder")
    assert steps == ["file", "inner", part.name, "rename", tmp_path.name]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    write_atomically(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
