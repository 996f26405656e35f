"""``python -m analysis.pareto STUDY``: which trials are not dominated, as a table, a figure and a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.command import Parser, refuse_empty, run_command
from study.spec.eligible import empty_line, reasons_line

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from analysis.replicates import Replicates
    from analysis.table import StudyTable

TABLE_FILE = "trials.parquet"
_ALWAYS_SHOWN = ("network", "reg_weight", "reg_error", "lr")
_SHOWN_AS = {"reg_weight": "λ", "reg_error": "error"}
_PRINTED = 40  # rows of the front
_PIPED_WIDTH = 140  # characters where stdout is no terminal: nothing is cut


def parser() -> argparse.ArgumentParser:
    from analysis.load import add_study_arguments, folder

    parse = Parser(
        prog="python -m analysis.pareto",
        description="The Pareto front of a study's complete trials: table, hypervolume, figure, Parquet file.",
    )
    add_study_arguments(parse)
    parse.add_argument(
        "--out", type=folder, metavar="DIR", help="folder of the files (default: STORAGE/STUDY/analysis)"
    )
    parse.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    from analysis.load import cache_folder, ledger_from, load_curves, load_study, repeated_options

    ledger, storage = ledger_from(args)
    cache = cache_folder(storage, args.study)
    study = load_study(ledger, cache)
    curves = load_curves(ledger, study, cache)
    front = find_front(study)
    out = args.out or storage.local / args.study / "analysis"
    print_front(study, front)
    written = write_files(study, curves, front, out)
    from analysis.twins import find_twins, report_twins

    pairs = find_twins(study, front.mask)
    if any(pair.plain is not None for pair in pairs):
        report_twins(ledger, study, pairs)
    if args.json:
        print(json.dumps(summary(study, front)))
    options = repeated_options(args)
    print(f"results  {out}: {'  '.join(f.name for f in written)}", file=sys.stderr)
    if front.mask.any():
        print(f"next     python -m analysis.report {args.study}{options}", file=sys.stderr)
    else:
        print("next     type the study.run command again: the front needs an eligible trial", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class Front:
    """``mask`` (trials,) who is on it; ``eligible`` (trials,) who could be; ``knee`` the row where it bends.

    ``volume``: its hypervolume in the product of the objectives' units. ``repeated``: what replicates say, if any.
    """

    eligible: np.ndarray[Any, np.dtype[np.bool_]]
    mask: np.ndarray[Any, np.dtype[np.bool_]]
    volume: float
    knee: int | None
    repeated: Replicates | None


def find_front(study: StudyTable) -> Front:
    """The front of the trials that can be on one."""
    import numpy as np

    from analysis.geometry import hypervolume, knee
    from analysis.replicates import replicates

    possible, mask, values = eligible(study), front_mask(study), study.values()
    rows = np.flatnonzero(mask)
    bend = knee(values[rows], study.objectives)
    return Front(
        possible,
        mask,
        hypervolume(values[rows], study.objectives),
        None if bend is None else int(rows[bend]),
        replicates(study, possible),
    )


def eligible(study: StudyTable) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(trials,) True for trials that can be on the front: see :mod:`study.spec.eligible`."""
    import numpy as np

    return np.array([not reason for reason in study.why_not()], bool)


def comparable(study: StudyTable) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(trials,) True for trials that could be on the front of a study without constraints.

    What moves an objective is learned from these: to leave out what came out badly would hide what made it so.
    """
    import numpy as np

    return np.array([not reason for reason in study.why_not(constrained=False)], bool)


def front_mask(study: StudyTable) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(trials,) True for eligible trials that no other eligible one dominates.

    One dominates another that is nowhere worse and somewhere better. So equal points do not dominate each other:
    all of them are on the front, since each is a network of its own.
    """
    import numpy as np

    from analysis.geometry import nondominated

    possible = eligible(study)
    mask = np.zeros(len(possible), bool)
    mask[possible] = nondominated(study.values()[possible], study.objectives)
    return mask


def front_rows(study: StudyTable, front: Front) -> list[dict[str, Any]]:
    """The front as plain values, the best of the first objective first."""
    import numpy as np

    first = study.objectives[0]
    names = ["trial", "seed", "run_id", *_shown_params(study), *(m.name for m in study.objectives)]
    at = np.flatnonzero(front.mask)
    rows = study.trials.select([n for n in names if n in study.trials.column_names]).take(at).to_pylist()
    for i, row in zip(at, rows, strict=True):
        row["knee"] = bool(i == front.knee)
        if front.repeated is not None:
            row |= {"seeds": int(front.repeated.seeds[i]), "probability": float(front.repeated.probability[i])}
    return sorted(rows, key=lambda r: -r[first.name] if first.direction == "maximize" else r[first.name])


def summary(study: StudyTable, front: Front) -> dict[str, Any]:
    """The front, its hypervolume, its replicates' interval and who is not eligible as plain values, for JSON."""
    values: dict[str, Any] = {
        "front": front_rows(study, front),
        "trials": len(study.trials),
        "hypervolume": front.volume,
        "not_eligible": [{"trial": trial, "reason": reason} for trial, reason in study.not_eligible()],
    }
    if front.repeated is not None:
        values["single_seed_hypervolume"] = dict(zip(("low", "median", "high"), front.repeated.volume, strict=True))
    return values


def _shown_params(study: StudyTable) -> list[str]:
    always = [name for name in _ALWAYS_SHOWN if name in study.params]
    return always + [name for name in study.varied() if name not in always]


def print_front(study: StudyTable, front: Front) -> None:
    """Counts, the front as a table and its hypervolume, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    say = lambda text: console.print(text, soft_wrap=True)  # noqa: E731
    counts = ", ".join(f"{n} {state}" for state, n in study.counts().items()) or "none yet"
    say(f"study {study.name} · {len(study.trials)} trials ({counts})")
    others = study.other_protocol()
    for reason in sorted(set(filter(None, others))):
        say(
            f"{others.count(reason)} complete trials are {reason}, so they are not on the front; "
            f"`python -m study.rescore {study.name}` scores them again"
        )
    outside, rows = study.not_eligible(), front_rows(study, front)
    if not rows:
        say(f"front: empty, {empty_line(outside)}")
        return
    if outside:
        say(reasons_line(outside))
    params = _shown_params(study)
    table = Table(title=f"front ({len(rows)} of {len(study.trials)} trials)", title_justify="left", box=None)
    for name in ("trial", "seed", *(_SHOWN_AS.get(p, p) for p in params)):
        table.add_column(name, justify="right" if name in ("trial", "seed", "λ", "lr") else "left")
    for metric in study.objectives:
        better = "higher" if metric.direction == "maximize" else "lower"
        table.add_column(f"{metric.name}\n{metric.unit}\n{better} is better", justify="right")
    if front.repeated is not None:
        table.add_column("non-dominated\nprobability\n(seeds)", justify="right")
    table.add_column("")
    for row in rows[:_PRINTED]:
        cells = [str(row["trial"]), str(row["seed"]), *(_cell(row[p]) for p in params)]
        cells += [f"{row[m.name]:.4g}" for m in study.objectives]
        if front.repeated is not None:
            cells.append(f"{row['probability']:.2f} ({row['seeds']})")
        table.add_row(*cells, "knee" if row["knee"] else "")
    console.print(table)
    if len(rows) > _PRINTED:
        say(f"and {len(rows) - _PRINTED} more: see {TABLE_FILE}")
    if len(rows) == 1:
        say("The front is a single point: one trial is at least as good as every other in every objective.")
    reference = ", ".join(f"{m.name} {m.reference:g}" for m in study.objectives)
    say(f"hypervolume {front.volume:.6g} (reference point: {reference})")
    if front.repeated is not None:
        low, middle, high = front.repeated.volume
        say(
            f"of studies with one seed a configuration: median {middle:.6g}, 95 % within [{low:.6g}, {high:.6g}]; the "
            f"spread over seeds is known from {front.repeated.freedom} seeds beyond each configuration's first"
        )


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_files(study: StudyTable, curves: pa.Table, front: Front, out: Path) -> list[Path]:
    """The table of all trials, with columns ``front``, ``knee``, ``not_eligible`` (why, null where it is) and, with
    replicates, ``probability``; the figures of the front and of the way to it if there is a trial to draw. The files
    written.

    Raises :class:`StorageError` where ``out`` cannot be written.
    """
    import numpy as np
    import pyarrow as pa

    from analysis.anytime import anytime
    from analysis.figure import draw_anytime, draw_front, drawable
    from analysis.load import write_parquet
    from study.storage.storage import Storage

    Storage(out).check_writable()
    table = study.trials.append_column(pa.field("front", pa.bool_(), nullable=False), pa.array(front.mask))
    knee = np.arange(len(table)) == (-1 if front.knee is None else front.knee)
    table = table.append_column(pa.field("knee", pa.bool_(), nullable=False), pa.array(knee))
    table = table.append_column("not_eligible", pa.array([reason or None for reason in study.why_not()], pa.string()))
    if front.repeated is not None:
        table = table.append_column("probability", pa.array(front.repeated.probability, from_pandas=True))
    write_parquet(out / TABLE_FILE, table)
    written = [out / TABLE_FILE]
    if drawable(study).any():
        written += draw_front(study, front.mask, front.knee, front.repeated, out / "front")
        written += draw_anytime(study, anytime(study, curves, front.eligible), out / "hypervolume")
    return written


if __name__ == "__main__":
    sys.exit(run_command(main))
