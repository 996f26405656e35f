"""What an export holds, file by file with its SHA-256; whether a folder still is that. Standard library only."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from study.errors import ArtifactError

MANIFEST_FILE = "manifest.json"
#: The same hashes, and the manifest's own, in the form that ``sha256sum --check`` reads.
SUMS_FILE = "SHA256SUMS"
FORMAT = "study-export/2"
_CHUNK = 1 << 20


def write_manifest(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Hash every file under ``folder`` and write manifest and sums.

    ``content`` is what the manifest says beside ``format`` and ``files``. Returns the manifest. Raises OSError.
    """
    files = {n: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for n, path in _files(folder)}
    manifest = {"format": FORMAT, **content, "files": files}
    text = to_json(manifest)
    sums = {name: entry["sha256"] for name, entry in files.items()}
    sums[MANIFEST_FILE] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST_FILE).write_text(text)
    (folder / SUMS_FILE).write_text("".join(f"{h}  {n}\n" for n, h in sums.items()))
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of an export, every byte of which is what it says.

    Raises :class:`ArtifactError` naming the first file that is changed, missing, not a plain file, or not part of the
    export. Nothing is loaded or run: files are only hashed. Whoever can replace the manifest as well can replace
    everything: compare its own SHA-256 with the one that the export printed.
    """
    manifest = read_manifest(folder)
    known = known_files(manifest)
    for name, entry in manifest["files"].items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"{path}: is missing, or is not a plain file; export again")
        if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
            raise ArtifactError(
                f"{path}: is not what was exported (its SHA-256 is another); do not use it, export again"
            )
    for name, path in _files(folder):
        if name not in known:
            raise ArtifactError(f"{path}: is not part of the export; move it away, or do not trust the folder")
    sums = _read_sums(folder / SUMS_FILE)
    wanted = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    if sums != {**wanted, MANIFEST_FILE: sha256_of(folder / MANIFEST_FILE)}:
        raise ArtifactError(
            f"{folder / SUMS_FILE}: differs from {MANIFEST_FILE}; one of them was changed, export again"
        )
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest as it stands. Raises :class:`ArtifactError` where there is none, or it is of another kind."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise ArtifactError(f"{path}: format {manifest['format']!r}; this program reads {FORMAT}")
        for name, entry in manifest["files"].items():
            parts = PurePosixPath(name).parts
            if not parts or parts[0] == "/" or ".." in parts or not {"sha256", "bytes"} <= entry.keys():
                raise ValueError(f"file {name!r}")
        str(manifest["study"])
    except OSError as error:
        raise ArtifactError(f"{folder}: holds no export ({MANIFEST_FILE}: {error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: is not the manifest of an export ({error}); export again") from None
    return manifest


def known_files(manifest: Mapping[str, Any]) -> set[str]:
    """Names, relative with slashes, of everything that an export with this manifest holds."""
    return {*manifest["files"], MANIFEST_FILE, SUMS_FILE}


def foreign_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What is in the folder and not part of the export, by name."""
    known = known_files(manifest)
    return [name for name, _ in _files(folder) if name not in known]


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def to_json(value: Any) -> str:
    """Readable JSON; a number that is not finite, which JSON does not have, is null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Everything but folders, links to folders included, as (relative name, path), sorted."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix(), path


def _read_sums(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); export again") from None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
