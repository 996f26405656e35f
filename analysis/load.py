"""``python -m analysis.load STUDY``: from the ledger to two tables, of trials and of curves, as Parquet files.

What was read once is kept beside the study's other results; only runs that changed since are read again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.command import Parser, expanded, refuse_empty, run_command
from study.errors import InputError
from study.storage.atomic import replacing
from study.storage.storage import DEFAULT_STORAGE, location_options

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.table import StudyTable
    from study.ledger import Ledger, TrialRecord
    from study.storage.storage import Storage

TRIALS_FILE = "trials.parquet"
CURVES_FILE = "curves.parquet"
_RECORDS_FILE = "records.parquet"
_CACHE = ".ledger"  # folder in the study's analysis folder
_FORMAT = "3"  # of the kept files: others are read anew
_KEY = b"study.kept"


def parser() -> argparse.ArgumentParser:
    parse = Parser(
        prog="python -m analysis.load",
        description="Write a study's two tables as Parquet files: all trials, failed and stopped ones labelled, and "
        "the curves of all their metrics.",
    )
    add_study_arguments(parse)
    parse.add_argument(
        "--out", type=folder, metavar="DIR", help="folder of the files (default: STORAGE/STUDY/analysis)"
    )
    parse.add_argument("--fresh", action="store_true", help="forget what was read before and read the whole ledger")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    from study.storage.storage import Storage

    ledger, storage = ledger_from(args)
    cache = cache_folder(storage, args.study)
    if args.fresh:
        forget(cache)
    study = load_study(ledger, cache)
    curves = load_curves(ledger, study, cache)
    out = args.out or storage.local / args.study / "analysis"
    Storage(out).check_writable()
    for name, table in ((TRIALS_FILE, study.trials), (CURVES_FILE, curves)):
        write_parquet(out / name, table)
    counts = ", ".join(f"{n} {state}" for state, n in study.counts().items()) or "none yet"
    print(f"study {study.name} · {len(study.trials)} trials ({counts}) · {len(curves)} values of curves")
    print(f"results  {out / TRIALS_FILE}  {out / CURVES_FILE}", file=sys.stderr)
    print(f"next     python -m analysis.pareto {args.study}{repeated_options(args)}", file=sys.stderr)
    return 0


def load_study(ledger: Ledger, cache: Path | None = None) -> StudyTable:
    """The study's table of trials. With ``cache``, only runs that changed since its last reading are read.

    Raises :class:`InputError` for an unknown study, :class:`ArtifactError` for a specification without objectives and
    runs that break the schema.
    """
    from analysis.table import StudyTable, objectives_of, trials_table

    record = ledger.record()
    objectives = objectives_of(ledger.study, record.spec)
    if cache is None:
        reader = ledger.bulk()
        records = reader.records(list(reader.stamps()))
        table, params = trials_table(ledger.study, record.spec, records)
        return StudyTable(ledger.study, record.spec, objectives, params, table)
    reader = ledger.bulk()
    stamps = reader.stamps()
    identity = _identity(ledger, record.run_id)
    whole = {**identity, "stamps": _digest(stamps), "spec": _digest(record.spec)}
    kept = _read(cache / TRIALS_FILE, whole)
    if kept is None:
        before = _read(cache / _RECORDS_FILE, identity)
        known: dict[str, tuple[str, str]] = {}
        if before is not None:
            rows = (before[name].to_pylist() for name in ("run_id", "stamp", "record"))
            known = {run_id: (stamp, text) for run_id, stamp, text in zip(*rows, strict=True)}
        old = {i: known[i][1] for i, stamp in stamps.items() if known.get(i, ("",))[0] == stamp}
        fresh = {r.run_id: r for r in reader.records([i for i in stamps if i not in old])}
        table, params = trials_table(ledger.study, record.spec, [*fresh.values(), *map(_record, old.values())])
        _keep_records(cache, identity, stamps, fresh, old)
        kept = _write(cache / TRIALS_FILE, table, {**whole, "params": list(params)})
    return StudyTable(ledger.study, record.spec, objectives, tuple(_noted(kept)["params"]), kept)


def load_curves(ledger: Ledger, study: StudyTable, cache: Path | None = None) -> pa.Table:
    """All curves of the study's trials, with the columns of ``analysis.table.CURVES``, as incrementally.

    Raises :class:`LedgerError` where a tracking server gives no histories.
    """
    import pyarrow as pa
    from pyarrow import compute

    from analysis.table import curves_table, ordered

    reader = ledger.bulk()
    runs = set(study.column("run_id"))
    stamps = {run_id: stamp for run_id, stamp in reader.stamps().items() if run_id in runs}
    epochs = int(max([0, *(e for e in study.column("epoch") if e is not None)]))
    if cache is None:
        return curves_table(reader.histories(list(stamps), epochs))
    identity = _identity(ledger, ledger.record().run_id)
    kept = _read(cache / CURVES_FILE, identity)
    known: Mapping[str, str] = _noted(kept)["stamps"] if kept is not None else {}
    changed = [run_id for run_id, stamp in stamps.items() if known.get(run_id) != stamp]
    gone = [run_id for run_id in known if run_id not in stamps]
    if kept is not None and not changed and not gone:
        return kept
    new = curves_table(reader.histories(changed, epochs))
    if kept is not None:
        stale = compute.is_in(kept["run_id"].cast(pa.string()), value_set=pa.array([*changed, *gone], pa.string()))
        new = ordered(pa.concat_tables([kept.filter(compute.invert(stale)).replace_schema_metadata(None), new]))
    return _write(cache / CURVES_FILE, new, {**identity, "stamps": stamps})


def cache_folder(storage: Storage, study: str) -> Path:
    """Where commands keep what they read of a study."""
    return storage.local / study / "analysis" / _CACHE


def forget(cache: Path) -> None:
    """Remove what was kept, so that the next reading is of the whole ledger."""
    for name in (TRIALS_FILE, CURVES_FILE, _RECORDS_FILE):
        (cache / name).unlink(missing_ok=True)


def write_parquet(file: Path, table: pa.Table) -> None:
    """Atomically: a reader sees the old file or the new one. Raises OSError."""
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        parquet.write_table(table, part, compression="zstd")


def add_study_arguments(parse: argparse.ArgumentParser) -> None:
    """The arguments by which every command of this package names a study."""
    parse.add_argument("study", metavar="STUDY", help="name of the study, as study.run printed it")
    parse.add_argument(
        "--storage",
        default=DEFAULT_STORAGE,
        metavar="DIR_OR_URI",
        help="where results live (default: $STUDY_STORAGE, else results)",
    )
    parse.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow server or store (default: mlflow.db in the results folder)"
    )


def folder(text: str) -> Path:
    """Type of an argument; refuses the empty text that a shell variable without value leaves."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a folder or leave it out")
    try:
        return expanded(text, "")
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.message}") from None


def ledger_from(args: argparse.Namespace) -> tuple[Ledger, Storage]:
    """The ledger and storage that the arguments name. Raises :class:`InputError` for a bad location."""
    from study.ledger import Ledger, default_tracking_uri
    from study.storage.storage import Storage

    storage = Storage.parse(args.storage)
    return Ledger(args.tracking_uri or default_tracking_uri(storage.local), args.study), storage


def repeated_options(args: argparse.Namespace) -> str:
    """The options that the next command needs too."""
    return location_options(args.storage, args.tracking_uri)


def _identity(ledger: Ledger, parent: str) -> dict[str, Any]:
    return {"format": _FORMAT, "ledger": _digest(ledger.tracking_uri), "study": ledger.study, "parent": parent}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _noted(table: pa.Table) -> dict[str, Any]:
    return json.loads(table.schema.metadata[_KEY])


def _read(file: Path, expected: Mapping[str, Any]) -> pa.Table | None:
    """A kept table, or None where there is none, it is damaged, or what it notes of itself is not ``expected``."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        noted = json.loads((parquet.read_schema(file).metadata or {})[_KEY])
        if any(noted.get(name) != value for name, value in expected.items()):
            return None
        return parquet.read_table(file, memory_map=False)
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


def _write(file: Path, table: pa.Table, noted: Mapping[str, Any]) -> pa.Table:
    """Keep a table where that is possible (it may be somebody else's folder); the table with its notes."""
    table = table.replace_schema_metadata({_KEY: json.dumps(noted).encode()})
    try:
        write_parquet(file, table)
    except OSError:
        file.unlink(missing_ok=True) if os.access(file.parent, os.W_OK) else None
    return table


def _keep_records(
    cache: Path,
    identity: Mapping[str, Any],
    stamps: Mapping[str, str],
    fresh: Mapping[str, TrialRecord],
    old: Mapping[str, str],
) -> None:
    import pyarrow as pa

    texts = {**old, **{run_id: json.dumps(dataclasses.asdict(r)) for run_id, r in fresh.items()}}
    table = pa.table({"run_id": list(texts), "stamp": [stamps[i] for i in texts], "record": list(texts.values())})
    _write(cache / _RECORDS_FILE, table, identity)


def _record(text: str) -> TrialRecord:
    from study.ledger import TrialRecord

    return TrialRecord(**json.loads(text))


if __name__ == "__main__":
    sys.exit(run_command(main))
