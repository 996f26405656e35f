"""Where files live: folders, and object stores that a folder mirrors."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from pyarrow import fs

from study.errors import InputError, StorageError
from study.storage.storage import DEFAULT_STORAGE, Storage, location_options


def test_folder_and_file_uri(tmp_path: Path) -> None:
    assert Storage.parse(str(tmp_path)) == Storage(tmp_path)
    assert Storage.parse(tmp_path.as_uri()) == Storage(tmp_path)
    Storage(tmp_path / "new").check_writable()
    assert list((tmp_path / "new").iterdir()) == []


def test_the_next_command_takes_the_options_as_they_were_typed() -> None:
    place, uri = "my results; it's mine", "http://localhost:5000/a b"
    assert shlex.split(location_options(place, uri)) == ["--storage", place, "--tracking-uri", uri]
    assert location_options(DEFAULT_STORAGE, None) == ""


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="--storage gopher://x"):
        Storage.parse("gopher://x")


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Storage(tmp_path / "taken").check_writable()


def test_a_file_pushed_is_pulled_by_another_machine(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"  # through pyarrow's file systems, as s3:// would be
    here, there = Storage(tmp_path / "here", store), Storage(tmp_path / "there", store)
    file = here.local / "quick" / "trials" / "checkpoint"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"one")
    here.push(file)
    file.write_bytes(b"two")
    here.push(file)
    arrived = there.local / "quick" / "trials" / "checkpoint"
    there.pull(arrived)
    assert arrived.read_bytes() == b"two"
    arrived.write_bytes(b"newer")
    there.pull(arrived)
    assert arrived.read_bytes() == b"newer", "what is here already is not overwritten"
    there.pull(there.local / "absent")
    assert not (there.local / "absent").exists()
    assert fs.LocalFileSystem().get_file_info(f"{tmp_path}/store/quick/trials/checkpoint").size == 3
