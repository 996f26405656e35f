"""``python -m analysis.pareto STUDY``: which configurations are not dominated, as a table, a figure and a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.command import Parser, refuse_empty, run_command
from study.spec.eligible import empty_line, reasons_line

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.statistics.front import Front
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
    from analysis.statistics.front import find_front
    from analysis.twins import find_twins, report_twins

    ledger, storage = ledger_from(args)
    cache = cache_folder(storage, args.study)
    study = load_study(ledger, cache)
    curves = load_curves(ledger, study, cache)
    front = find_front(study)
    out = args.out or storage.local / args.study / "analysis"
    written = write_files(study, curves, front, out)  # first: whoever reads the lines may stop reading
    print_front(study, front)
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


def front_rows(study: StudyTable, front: Front) -> list[dict[str, Any]]:
    """The front as plain values, the best of the first objective first; scores are means over seeds."""
    names, scores = ["trial", "seed", "run_id", *_shown_params(study)], [m.name for m in study.objectives]
    rows = []
    for i in front.rows:
        row = {name: study.column(name)[i] for name in names} | dict(zip(scores, front.means[i].tolist(), strict=True))
        row["knee"] = i == front.knee
        if front.repeated is not None:
            row |= {"seeds": int(front.repeated.seeds[i]), "probability": float(front.repeated.probability[i])}
            row["standard_errors"] = dict(zip(scores, front.repeated.errors[i].tolist(), strict=True))
        rows.append(row)
    return rows


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
        better = "higher" if metric.sign > 0 else "lower"
        table.add_column(f"{metric.name}\n{metric.unit}\n{better} is better", justify="right")
    if front.repeated is not None:
        table.add_column("non-dominated\nprobability\n(seeds)", justify="right")
    table.add_column("")
    for row in rows[:_PRINTED]:
        cells = [str(row["trial"]), str(row["seed"]), *(_cell(row[p]) for p in params)]
        cells += [_with_error(row, m.name) for m in study.objectives]
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


def _with_error(row: dict[str, Any], score: str) -> str:
    """A mean over seeds with its standard error; a single trial's score where nothing was repeated."""
    error = f" ± {row['standard_errors'][score]:.2g}" if "standard_errors" in row else ""
    return f"{row[score]:.4g}{error}"


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

    from analysis.figures.anytime import draw_anytime
    from analysis.figures.front import draw_front, drawable
    from analysis.load import write_parquet
    from analysis.statistics.anytime import anytime
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
    if drawable(study, front).any():
        written += draw_front(study, front, out / "front")
        written += draw_anytime(study, anytime(study, curves, front.eligible), out / "hypervolume")
    return written


if __name__ == "__main__":
    sys.exit(run_command(main))
