"""``python -m analysis.importance STUDY``: which parameters move the objectives and the front, and what lambda does."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.command import Parser, refuse_empty, run_command
from study.spec.eligible import empty_line

if TYPE_CHECKING:
    from analysis.statistics.effect import Effect
    from analysis.statistics.importance import Importance
    from analysis.table import StudyTable


def parser() -> argparse.ArgumentParser:
    from analysis.load import add_study_arguments, folder

    parse = Parser(
        prog="python -m analysis.importance",
        description="Importance of every searched parameter for every objective and for the front (PED-ANOVA), and the "
        "effect of lambda with everything else held level: tables and figures.",
    )
    add_study_arguments(parse)
    parse.add_argument(
        "--out", type=folder, metavar="DIR", help="folder of the figures (default: STORAGE/STUDY/analysis)"
    )
    parse.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    from analysis.figures.effect import draw_effects
    from analysis.figures.importance import draw_importance
    from analysis.load import cache_folder, ledger_from, load_study, repeated_options
    from analysis.statistics.effect import lambda_effects
    from analysis.statistics.front import comparable
    from analysis.statistics.importance import importance
    from study.storage.storage import Storage

    ledger, storage = ledger_from(args)
    study = load_study(ledger, cache_folder(storage, args.study))
    learned = comparable(study)
    found, effects = importance(study, learned), lambda_effects(study, learned)
    out: Path = args.out or storage.local / args.study / "analysis"
    Storage(out).check_writable()
    written = []
    if found.shares:
        written += draw_importance(study, found, out / "importance")
    if any(e.levels for e in effects):
        written += draw_effects(study, effects, out / "lambda")
    print_importance(study, found)
    print_effects(effects)
    if args.json:
        print(json.dumps(as_json(found, effects)))
    print(f"results  {'  '.join(str(f) for f in written) or 'none: see above'}", file=sys.stderr)
    print(f"next     python -m analysis.pareto {args.study}{repeated_options(args)}", file=sys.stderr)
    return 0


def print_importance(study: StudyTable, found: Importance) -> None:
    print(f"study {study.name} · importance from {found.learned_from}")
    if found.trials == found.outside:
        print(f"front: empty, {empty_line(study.not_eligible())}")
    if found.why_not:
        print(f"importance: cannot tell: {found.why_not}")
        return
    print("share of importance (%); * beyond what chance gives in 19 of 20 studies")
    targets = list(found.shares)
    print(f"{'':<16}" + "".join(f"{t:>16}" for t in targets))
    for param in sorted(found.shares[targets[-1]], key=lambda p: -found.shares[targets[-1]][p]):
        cells = [f"{100 * found.shares[t][param]:.0f}{'*' if found.sure(t, param) else ' '}" for t in targets]
        print(f"{'λ' if param == 'reg_weight' else param:<16}" + "".join(f"{c:>16}" for c in cells))


def print_effects(effects: Sequence[Effect]) -> None:
    from analysis.statistics.effect import shown_range

    adjusted = next((e.adjusted for e in effects if e.levels), ())
    print(f"\nλ, with {', '.join(adjusted) or 'nothing else'} held level; 95 % intervals, for all levels together")
    for effect in effects:
        print(effect.sentence)
        for level in effect.levels:
            low, high = level.interval
            bounds = f"[{low:+.2f}, {high:+.2f}]" if math.isfinite(high) else "[one configuration decides]"
            where = f"λ {shown_range(level.low, level.high)} ({level.configurations} configurations)"
            print(f"  {where:<44}{level.estimate:+8.2f}  {bounds}")


def as_json(found: Importance, effects: Sequence[Effect]) -> dict[str, Any]:
    """Plain values; an infinite interval is null."""
    finite = lambda v: v if math.isfinite(v) else None  # noqa: E731
    return {
        "trials": found.trials,
        "not_eligible": found.outside,
        "importance": found.shares,
        "chance": found.chance,
        "why_not": found.why_not,
        "lambda": {
            e.metric.name: {
                "reference": e.reference,
                "adjusted": list(e.adjusted),
                "sentence": e.sentence,
                "levels": [
                    {
                        "low": v.low,
                        "high": v.high,
                        "configurations": v.configurations,
                        "estimate": v.estimate,
                        "interval": [finite(b) for b in v.interval],
                    }
                    for v in e.levels
                ],
            }
            for e in effects
        },
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
