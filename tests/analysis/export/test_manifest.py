"""A folder is what was exported, byte for byte, or it is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.export.manifest import to_json, verify, write_manifest
from analysis.verify import main
from study.command import EXIT_BAD_INPUT, run_command
from study.errors import ArtifactError


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    (out / "trial-0001").mkdir(parents=True)
    (out / "trial-0001" / "model.onnx").write_bytes(b"weights" * 1000)
    (out / "README.md").write_text("λ")
    write_manifest(out, {"study": "demo"})
    return out


def flip_a_bit(out: Path) -> None:
    file = out / "trial-0001" / "model.onnx"
    content = bytearray(file.read_bytes())
    content[3456] ^= 1
    file.write_bytes(content)


def rename_in_manifest(out: Path) -> None:
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace("trial-0001/model.onnx", "../model.onnx"))


def link(out: Path) -> None:
    file = out / "trial-0001" / "model.onnx"
    file.rename(out.parent / "model.onnx")
    file.symlink_to(out.parent / "model.onnx")


TAMPERINGS: list[tuple[Callable[[Path], object], str]] = [
    (flip_a_bit, r"trial-0001/model\.onnx: is not what was exported"),
    (lambda out: (out / "README.md").unlink(), r"README\.md: is missing"),
    (link, r"model\.onnx: is missing, or is not a plain file"),
    (lambda out: (out / "trial-0001" / "extra.pt").write_text(""), r"extra\.pt: is not part of the export"),
    (lambda out: (out / "SHA256SUMS").write_text("0  README.md\n"), "SHA256SUMS: differs"),
    (lambda out: (out / "SHA256SUMS").unlink(), "SHA256SUMS: cannot be read"),
    (lambda out: (out / "manifest.json").write_text(to_json({**verify(out), "study": "other"})), "SHA256SUMS: differs"),
    (lambda out: (out / "manifest.json").write_text("{"), "not the manifest of an export"),
    (lambda out: (out / "manifest.json").write_text("[]"), "not the manifest of an export"),
    (lambda out: (out / "manifest.json").write_text('{"format": "x"}'), "this program reads"),
    (rename_in_manifest, "not the manifest of an export"),
    (lambda out: shutil.rmtree(out), "holds no export"),
]


def test_an_untouched_export_is_intact(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(exported)]) == 0
    said = capsys.readouterr().out
    assert "intact, 2 files of study demo" in said
    digest = said.split()[-1]
    assert main([str(exported), "--manifest-hash", digest.upper()]) == 0
    with pytest.raises(ArtifactError, match="not the one that was asked for"):
        main([str(exported), "--manifest-hash", "0" * 64])
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(command, cwd=exported, check=True)


@pytest.mark.parametrize(("tamper", "message"), TAMPERINGS)
def test_a_tampered_export_is_refused_by_name(
    tamper: Callable[[Path], object], message: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(exported)
    with pytest.raises(ArtifactError, match=message):
        verify(exported)
    assert run_command(main, [str(exported)]) == EXIT_BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1


def test_numbers_that_are_not_finite_are_null(exported: Path) -> None:
    assert json.loads(to_json({"a": [float("nan"), 1.5, {"b": float("inf")}]})) == {"a": [None, 1.5, {"b": None}]}
