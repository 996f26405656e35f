"""``python -m benchmarks.analysis [--runs 10000]``: seconds to read, analyse and report a large study."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from benchmarks.synthetic import write_runs
from study.ledger import Ledger, create_store, default_tracking_uri


def main(argv: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.analysis", description=__doc__)
    parse.add_argument("--runs", type=int, default=10_000, metavar="N", help="runs of the study (default: 10000)")
    args = parse.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), args.runs)))
    return 0


def measure(folder: Path, runs: int) -> dict[str, Any]:
    """Seconds by step. The study lies in ``folder``, a database of MLflow; a process imports everything once first."""
    from analysis import importance, load, pareto, report

    create_store(default_tracking_uri(folder))
    ledger = Ledger(default_tracking_uri(folder), "large")
    write_runs(ledger, 0, runs - 1)
    cache = folder / "large" / "analysis" / ".ledger"

    def read() -> None:
        again = Ledger(default_tracking_uri(folder), "large")
        study = load.load_study(again, cache)
        load.load_curves(again, study, cache)

    seconds: dict[str, Any] = {"runs": runs}
    seconds["load_cold_s"] = _timed(read)
    seconds["load_unchanged_s"] = _timed(read)
    write_runs(ledger, runs - 1, 1)
    seconds["load_one_more_s"] = _timed(read)
    for name, command in (("pareto", pareto), ("importance", importance), ("report", report)):
        seconds[f"{name}_s"] = _timed(lambda c=command: c.main(["large", "--storage", str(folder)]))  # type: ignore[misc]
    seconds["report_mib"] = round((folder / "large" / "report.html").stat().st_size / 2**20, 2)
    return seconds


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        work()
    took = round(time.perf_counter() - start, 2)
    print(f"{took} s", file=sys.stderr)
    return took


if __name__ == "__main__":
    sys.exit(main())
