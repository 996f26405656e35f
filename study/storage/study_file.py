"""The file ``study.json``: a study's identity, which is all that determines a trial's result.

A name belongs to one specification. A command with the same one continues the study; one with another is refused with
the keys that differ, or begins a new study from what the old one found (:mod:`study.search.warm_start`).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from study import names
from study.config import DEFAULTS
from study.errors import ArtifactError, InputError
from study.spec.study_spec import StudySpec
from study.storage.atomic import write_atomically
from study.storage.storage import Storage

_NOT_IN_IDENTITY = ("data.source", "evaluation.batch_size", "fixed.seed", "fixed.rungs")


def read_identity(storage: Storage, name: str) -> tuple[dict[str, Any], str] | None:
    """Identity and fingerprint of the study of that name; None where there is none.

    Raises :class:`ArtifactError` where its file cannot be read.
    """
    file = storage.local / name / names.STUDY_FILE
    storage.pull(file)
    if not file.exists():
        return None
    try:
        stored = json.loads(file.read_text())
        return stored["identity"], stored["fingerprint"]
    except (ValueError, KeyError, OSError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error!r}); restore it or choose another --name") from None


def check_same_study(storage: Storage, name: str, identity: dict[str, Any], fingerprint: str) -> str:
    """The study's fingerprint: the first one, since later versions may have added keys to the identity.

    Raises :class:`InputError` where the name belongs to a study with another specification.
    """
    stored = read_identity(storage, name)
    if stored is None:
        return fingerprint
    keys = differing(identity, stored[0])
    if not keys:
        return stored[1]
    mine, old = _completed(identity), _completed(stored[0])
    shown = "; ".join(f"{k}: {_short(old.get(k))} there, {_short(mine.get(k))} now" for k in keys[:4])
    more = f"; and {len(keys) - 4} more" if len(keys) > 4 else ""
    raise InputError(
        f"study {name!r} exists in {storage.local} with another specification ({shown}{more}); choose another --name, "
        "or --fork NEW to begin a new study from what this one found"
    )


def differing(identity: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The dotted keys in which two identities differ; one that lacks a key has its default."""
    mine, theirs = _completed(identity), _completed(other)
    return sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))


def _completed(identity: dict[str, Any]) -> dict[str, Any]:
    """Flat, with the default of every parameter that the identity, perhaps an older version's, does not name."""
    given = flat(identity)
    searched = identity.get("space", {})
    defaults = {k if "." in k else f"fixed.{k}": v for k, v in DEFAULTS.items() if k not in searched}
    return {**{k: v for k, v in defaults.items() if k not in _NOT_IN_IDENTITY}, **given}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, inner in value.items() for k, v in flat(inner, f"{prefix}.{name}".strip(".")).items()}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else text[:20] + "…" + text[-1]


def write_study(storage: Storage, name: str, spec: StudySpec, identity: dict[str, Any], fingerprint: str) -> None:
    """Write the study's file atomically. Raises :class:`StorageError` where it cannot be written."""
    file = storage.local / name / names.STUDY_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "name": name,
        "fingerprint": fingerprint,
        "identity": identity,
        "spec": spec.model_dump(mode="json", by_alias=True),
        "command": [os.path.basename(sys.executable), "-m", "study.run", *sys.argv[1:]],
    }
    write_atomically(file, (json.dumps(content, indent=2) + "\n").encode())
    storage.push(file)
