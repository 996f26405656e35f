"""``python -m analysis.pareto STUDY``: which trials are not dominated, as a table, a figure and a file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import metrics
from study.errors import run_command
from study.metrics import Metric

if TYPE_CHECKING:
    import numpy as np

    from analysis.table import StudyTable

TABLE_FILE = "trials.parquet"
FIGURE_FILE = "front.png"
_ALWAYS_SHOWN = ("network", "reg_weight", "reg_error", "lr")
_SHOWN_AS = {"reg_weight": "λ", "reg_error": "E"}
_PIPED_WIDTH = 140  # characters where stdout is no terminal: nothing is cut


def parser() -> argparse.ArgumentParser:
    from analysis.load import add_study_arguments

    parse = argparse.ArgumentParser(
        prog="python -m analysis.pareto",
        description="The Pareto front of a study's complete trials: table, hypervolume, figure, Parquet file.",
    )
    add_study_arguments(parse)
    parse.add_argument("--out", type=Path, metavar="DIR", help="folder of the files (default: STORAGE/STUDY/analysis)")
    parse.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from analysis.load import ledger_from, load_study, repeated_options

    ledger, storage = ledger_from(args)
    study = load_study(ledger)
    on_front = front_mask(study)
    volume = hypervolume(study.values()[on_front], study.objectives)
    out = args.out or storage.local / args.study / "analysis"
    print_front(study, on_front, volume)
    written = write_files(study, on_front, out)
    from analysis.twins import find_twins, report_twins

    pairs = find_twins(study, on_front)
    if any(pair.plain is not None for pair in pairs):
        report_twins(ledger, study, pairs)
    if args.json:
        print(json.dumps({"front": front_rows(study, on_front), "trials": len(study.trials), "hypervolume": volume}))
    options = repeated_options(args)
    print(f"results  {'  '.join(str(f) for f in written)}", file=sys.stderr)
    if on_front.any():
        print(f"next     python -m analysis.export {args.study} --out exported{options}", file=sys.stderr)
    else:
        print("next     type the study.run command again: the front needs a complete trial", file=sys.stderr)
    return 0


def front_mask(study: StudyTable) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(trials,) True for complete trials with finite objectives that no other such trial dominates.

    One dominates another that is nowhere worse and somewhere better. So equal points do not dominate each other:
    all of them are on the front, since each is a network of its own.
    """
    import numpy as np

    values = study.values()
    complete = np.array([state == metrics.COMPLETE for state in study.column("state")], bool)
    eligible = complete & np.isfinite(values).all(axis=1)
    mask = np.zeros(len(values), bool)
    mask[eligible] = nondominated(values[eligible], study.objectives)
    return mask


def nondominated(
    values: np.ndarray[Any, np.dtype[np.float64]], objectives: Sequence[Metric]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(points,) True where no row of the finite ``values`` (points, objectives) dominates; duplicates are kept."""
    import moocore
    import numpy as np

    if len(values) == 0:
        return np.zeros(0, bool)
    return np.asarray(moocore.is_nondominated(values, maximise=_maximise(objectives), keep_weakly=True), bool)


def hypervolume(values: np.ndarray[Any, np.dtype[np.float64]], objectives: Sequence[Metric]) -> float:
    """What ``values`` (points, objectives) dominate, up to the objectives' reference points, in their units' product.

    A point that is not better than the reference in every objective contributes nothing.
    """
    import moocore
    import numpy as np

    reference = np.array([m.reference for m in objectives])
    signs = np.where(_maximise(objectives), 1.0, -1.0)
    inside = values[((values - reference) * signs > 0).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    return float(moocore.hypervolume(inside, ref=reference, maximise=_maximise(objectives)))


def _maximise(objectives: Sequence[Metric]) -> list[bool]:
    return [m.direction == "maximize" for m in objectives]


def front_rows(study: StudyTable, on_front: np.ndarray[Any, np.dtype[np.bool_]]) -> list[dict[str, Any]]:
    """The front as plain values, the best of the first objective first."""
    import numpy as np

    first = study.objectives[0]
    names = ["trial", "seed", "run_id", *_shown_params(study), *(m.name for m in study.objectives)]
    rows = study.trials.select([n for n in names if n in study.trials.column_names]).take(np.flatnonzero(on_front))
    return sorted(rows.to_pylist(), key=lambda r: -r[first.name] if first.direction == "maximize" else r[first.name])


def _shown_params(study: StudyTable) -> list[str]:
    always = [name for name in _ALWAYS_SHOWN if name in study.params]
    return always + [name for name in study.varied() if name not in always]


def print_front(study: StudyTable, on_front: np.ndarray[Any, np.dtype[np.bool_]], volume: float) -> None:
    """Counts, the front as a table and its hypervolume, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    counts = ", ".join(f"{n} {state}" for state, n in study.counts().items()) or "none yet"
    console.print(f"study {study.name} · {len(study.trials)} trials ({counts})", soft_wrap=True)
    rows = front_rows(study, on_front)
    if not rows:
        console.print("front: empty, no trial is complete with finite objectives", soft_wrap=True)
        return
    params = _shown_params(study)
    table = Table(title=f"front ({len(rows)} of {len(study.trials)} trials)", title_justify="left", box=None)
    for name in ("trial", "seed", *(_SHOWN_AS.get(p, p) for p in params)):
        table.add_column(name, justify="right" if name in ("trial", "seed", "λ", "lr") else "left")
    for metric in study.objectives:
        better = "higher" if metric.direction == "maximize" else "lower"
        table.add_column(f"{metric.name}\n{metric.unit}\n{better} is better", justify="right")
    for row in rows:
        cells = [str(row["trial"]), str(row["seed"]), *(_cell(row[p]) for p in params)]
        table.add_row(*cells, *(f"{row[m.name]:.4g}" for m in study.objectives))
    console.print(table)
    if len(rows) == 1:
        console.print("The front is a single point: one trial is at least as good as every other in every objective.")
    reference = ", ".join(f"{m.name} {m.reference:g}" for m in study.objectives)
    console.print(f"hypervolume {volume:.6g} (reference point: {reference})", soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_files(study: StudyTable, on_front: np.ndarray[Any, np.dtype[np.bool_]], out: Path) -> list[Path]:
    """The table of all trials, with a column ``front``, and the figure if any trial is complete; the files written.

    Raises :class:`InputError` where ``out`` cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    from analysis.figure import draw_front
    from study.storage import Storage

    Storage(out).check_writable()
    table = study.trials.append_column(pa.field("front", pa.bool_(), nullable=False), pa.array(on_front))
    part = out / (TABLE_FILE + ".part")
    parquet.write_table(table, part)
    os.replace(part, out / TABLE_FILE)
    written = [out / TABLE_FILE]
    if on_front.any():
        part = out / (FIGURE_FILE + ".part")
        draw_front(study, on_front, part)
        os.replace(part, out / FIGURE_FILE)
        written.append(out / FIGURE_FILE)
    return written


if __name__ == "__main__":
    sys.exit(run_command(main))
