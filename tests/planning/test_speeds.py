"""Recorded speeds: the same after writing and reading, and refused where they are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.config import TrialConfig
from study.errors import InputError
from study.planning.speeds import Profile
from tests.planning.profiles import profile


def test_written_and_read_it_is_the_same(tmp_path: Path) -> None:
    profile().write(tmp_path / "p.json")
    assert Profile.read(tmp_path / "p.json") == profile()
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="resnet18.*tiny"):
        profile().speed(TrialConfig(network="resnet18", epochs=1, lr=0.1, batch_size=32))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda p: p.pop("format"), "not a profile"),
        (lambda p: p.pop("start"), "start"),
        (lambda p: p.update(start="soon"), "start"),
        (lambda p: p.update(surprise=1), "surprise"),
        (lambda p: p["speeds"][0].update(plain=-1), "plain"),
        (lambda p: p["speeds"][0].update(plain=float("nan")), "plain"),
        (lambda p: p.update(speeds=[1]), "damaged"),
        (lambda p: p.update(speeds=None), "damaged"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: object, word: str) -> None:
    file = tmp_path / "p.json"
    profile().write(file)
    values = json.loads(file.read_text())
    change(values)  # type: ignore[operator]
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match=word):
        Profile.read(file)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=r"--profile .*p\.json"):
        Profile.read(tmp_path / "p.json")
