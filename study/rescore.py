"""``python -m study.rescore STUDY``: a study's stored networks scored again, under the protocol of this version.

Nothing is trained. What is found is put beside the study first, then into the ledger trial by trial, then into Optuna's
storage at once: killed at any moment, the same command goes on. See docs/decisions/0026-rescoring.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study import names
from study.command import Parser, refuse_empty, run_command
from study.errors import ArtifactError, StorageError, UnavailableError
from study.storage.storage import DEFAULT_STORAGE, Storage, check_study_name, location_options

if TYPE_CHECKING:
    from study.ledger import Ledger
    from study.spec.study_spec import StudySpec

_STAGE = ".rescore"  # folder in the study's: what is scored and not yet everywhere


def parser() -> argparse.ArgumentParser:
    parse = Parser(
        prog="python -m study.rescore",
        description="Score a study's stored networks again, under the protocol of this version, without training.",
    )
    add = parse.add_argument
    add("study", metavar="STUDY", help="name of the study, as study.run printed it")
    add("--data", help="where its images are on this machine (default: where they were in training)")
    add(
        "--storage",
        default=DEFAULT_STORAGE,
        metavar="DIR_OR_URI",
        help="where results live (default: $STUDY_STORAGE, else results)",
    )
    add("--tracking-uri", metavar="URI", help="MLflow server or store (default: mlflow.db in the results folder)")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    check_study_name("STUDY", args.study)
    from study.ledger import Ledger, default_tracking_uri, replay

    storage = Storage.parse(args.storage)
    ledger = Ledger(args.tracking_uri or default_tracking_uri(storage.local), args.study)
    spec = _specification(ledger)
    folder = storage.local / args.study
    with _alone(folder) as cut_off:
        if waiting := replay(ledger, folder / "trials"):
            raise UnavailableError(
                f"study {args.study!r}: {waiting} trials have more to tell the ledger; let the session that runs them "
                "end, then type the same command"
            )
        todo = [r for r in ledger.trials() if not r.holds_under(spec.protocol)]
        if not todo and not cut_off and _optuna_has(folder, args.study) in (None, spec.protocol):
            print(f"study {args.study}: all its scores are made under {spec.protocol} already; nothing is to be done")
            return 0
        from study.rescoring.scoring import rescore

        lost = rescore(ledger, storage, todo, spec.protocol, folder / _STAGE, args.data)
        _tell_optuna(folder, spec, ledger)
    before = ", ".join(sorted({r.protocol or "an unnamed protocol" for r in todo})) or "another one"
    print(
        f"study {args.study}: {len(todo)} trials are scored under {spec.protocol} now, under {before} before"
        + (f"; {lost} of them have no stored network and keep no score" if lost else "")
    )
    options = location_options(args.storage, args.tracking_uri)
    print(f"next     python -m analysis.pareto {args.study}{options}", file=sys.stderr)
    return 0


def _specification(ledger: Ledger) -> StudySpec:
    from pydantic import ValidationError

    from study.spec.study_spec import StudySpec

    try:
        return StudySpec.recorded(ledger.record().spec)
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        raise ArtifactError(
            f"study {ledger.study!r}: its specification in the ledger is none of this version ({what})"
        ) from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """One rescoring of a study at a time; whether one before was cut off. The lock ends with the process."""
    stage = folder / _STAGE
    cut_off = stage.exists()
    try:
        stage.mkdir(parents=True, exist_ok=True)
        handle = (stage / "lock").open("w")
    except OSError as error:
        raise StorageError(f"{stage}: cannot be written ({error.strerror})") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(f"study {folder.name!r} is being scored by another process; wait for it") from None
        yield cut_off
        shutil.rmtree(stage)


def _optuna_has(folder: Path, study: str) -> str | None:
    from study.search.stored import stored_protocol

    return stored_protocol(folder / names.OPTUNA_FILE, study)


def _tell_optuna(folder: Path, spec: StudySpec, ledger: Ledger) -> None:
    """The search goes on from what the ledger says now; where this machine has no search of the study, nothing is."""
    if _optuna_has(folder, ledger.study) is None:
        return
    from study.search.rewrite import Scored, rewrite

    records = ledger.trials()
    curves = ledger.bulk().histories([r.run_id for r in records], spec.fidelity.max_epochs)
    latest: dict[tuple[str, int, str], tuple[int, float]] = {}
    for run_id, name, epoch, value, when in zip(
        curves.run_ids, curves.names, curves.epochs, curves.values, curves.when_ms, strict=True
    ):
        latest[run_id, epoch, name] = max(latest.get((run_id, epoch, name), (0, value)), (when, value))
    epochs: dict[str, dict[int, dict[str, float]]] = {r.run_id: {} for r in records}
    for (run_id, epoch, name), (_, value) in latest.items():
        epochs[run_id].setdefault(epoch, {})[name] = value
    found = {r.trial: Scored(r.state, r.metrics, epochs[r.run_id]) for r in records}
    rewrite(folder / names.OPTUNA_FILE, ledger.study, spec, found)


if __name__ == "__main__":
    sys.exit(run_command(main))
