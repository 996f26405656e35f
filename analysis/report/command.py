"""The command: reads the ledger, writes ``report.html`` and the static figures."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from study.command import Parser, refuse_empty
from study.spec.eligible import empty_line
from study.storage.atomic import write_atomically

REPORT_FILE = "report.html"
FIGURES = "figures"


def parser() -> argparse.ArgumentParser:
    from analysis.load import add_study_arguments, folder

    parse = Parser(
        prog="python -m analysis.report",
        description="Write one self-contained HTML page that shows what a study found (front with saliency maps, "
        "curves, importance, the effect of lambda, cost, failures, commands), and every figure as PNG and SVG.",
    )
    add_study_arguments(parse)
    parse.add_argument("--out", type=folder, metavar="DIR", help="folder of page and figures (default: STORAGE/STUDY)")
    parse.add_argument("--data", metavar="SRC", help="where the study's images are on this machine (default: as then)")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    from analysis.load import cache_folder, ledger_from, load_curves, load_study, repeated_options
    from study.storage.storage import Storage

    ledger, storage = ledger_from(args)
    cache = cache_folder(storage, args.study)
    study = load_study(ledger, cache)
    curves = load_curves(ledger, study, cache)
    out: Path = args.out or storage.local / args.study
    Storage(out).check_writable()
    from analysis.report.page import collect, draw, render

    typed = shlex.join(["python", "-m", "analysis.report", *(sys.argv[1:] if argv is None else argv)])
    content = collect(ledger, study, curves, args.data, typed, repeated_options(args))
    figures = draw(study, content, out / FIGURES)
    page = render(content, [f.relative_to(out).as_posix() for f in figures])
    write_atomically(out / REPORT_FILE, page.encode())
    if content.why_no_maps:
        print(f"report   no saliency maps: {content.why_no_maps}", file=sys.stderr)
    if not content.front.mask.any():
        print(f"report   there is no front to show: {empty_line(study.not_eligible())}", file=sys.stderr)
    print(f"report   {out / REPORT_FILE}  ({len(page) / 2**20:.1f} MiB, {len(figures)} figures in {out / FIGURES})")
    print(f"next     open it in a browser, or: python -m analysis.export {args.study} --out exported"
          f"{repeated_options(args)}", file=sys.stderr)  # fmt: skip
    return 0
