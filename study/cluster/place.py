"""Where a study runs: in place, or on the cluster that a cluster file describes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from study.errors import InputError

DEFAULT_FILE = "cluster.yaml"
_OTHER_FILES = "clusters"  # the folder of its variants


def on_cluster_machine() -> bool:
    """Whether this machine belongs to a cluster: the cluster file sets STUDY_STORAGE in every shell of its machines."""
    return bool(os.environ.get("STUDY_STORAGE"))


def cluster_file(named: str | None) -> Path | None:
    """The file of the cluster that runs the study; None where it runs on this machine.

    ``named`` is what the user asked for. Without it, that of ``cluster.yaml`` and ``clusters/*.yaml`` whose cluster was
    brought up last from this machine: ``ray up`` leaves a note here. Without such a note, and on a cluster's machine,
    the study runs here. Raises :class:`InputError` for a file that does not describe a cluster.
    """
    if on_cluster_machine():
        return None
    if named is not None:
        file = Path(named)
        description(file)
        return file
    folder = Path(_OTHER_FILES)
    candidates = [Path(DEFAULT_FILE), *(sorted(folder.glob("*.yaml")) if folder.is_dir() else [])]
    known: dict[tuple[str, str], Path] = {}
    for file in candidates:
        try:
            config = description(file)
        except InputError:
            continue
        known.setdefault(_identity(config), file)
    return next((known[identity] for identity in _brought_up() if identity in known), None)


def description(file: Path) -> dict[str, Any]:
    """The content of a cluster file. Raises :class:`InputError` where it is not one."""
    try:
        config = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(f"--cluster {file}: {error.strerror}; name a cluster file, e.g. {DEFAULT_FILE}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--cluster {file}: not YAML ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(config, dict) or not isinstance(config.get("provider"), dict) or "cluster_name" not in config:
        raise InputError(
            f"--cluster {file}: it has no cluster_name and provider, so it is no cluster file; see {DEFAULT_FILE}"
        )
    return config


def connection(file: Path) -> tuple[str, str | None]:
    """User and private key for ssh to the head: the file's, or those that Ray generated for it."""
    config = description(file)
    auth = dict(config.get("auth") or {})
    if "ssh_private_key" not in auth:
        auth |= next((c.get("auth") or {} for c in _cached() if _identity(c) == _identity(config)), {})
    return str(auth.get("ssh_user", "")), auth.get("ssh_private_key")


def _identity(config: dict[str, Any]) -> tuple[str, str]:
    return str(config["cluster_name"]), str(config["provider"].get("type"))


def _brought_up() -> list[tuple[str, str]]:
    return [_identity(config) for config in _cached()]


def _cached() -> Iterator[dict[str, Any]]:
    """What ``ray up`` noted in this machine's temporary folder, the latest first."""
    notes = Path(tempfile.gettempdir()).glob("ray-config-*")
    for note in sorted(notes, key=_age):
        try:
            config = json.loads(note.read_text())["config"]
            _identity(config)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        yield config


def _age(note: Path) -> float:
    try:
        return -note.stat().st_mtime
    except OSError:
        return 0.0
