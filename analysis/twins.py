"""``python -m analysis.twins STUDY``: does lambda help, everything else being equal?

Each front network trained with lambda > 0 is compared with its twin: the same configuration and seed, lambda = 0.
Both were scored on the same validation images, so the comparison is paired by image.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import metrics
from study.errors import InputError, run_command
from study.metrics import PARTS

if TYPE_CHECKING:
    import numpy as np

    from analysis.table import StudyTable
    from study.faithfulness.statistics import Floats
    from study.ledger import Ledger

_FREE = ("reg_weight", "reg_error", "data.source")  # twins differ in the first two; a path says nothing of content
_AGREEMENT_PP = 0.01  # recomputed and recorded faithfulness must agree so far, in percentage points


@dataclass(frozen=True)
class Pair:
    """Rows of the table of trials: ``regularized`` (lambda > 0) and its ``plain`` twin (None: not trained)."""

    regularized: int
    plain: int | None


def parser() -> argparse.ArgumentParser:
    from analysis.load import add_study_arguments

    parse = argparse.ArgumentParser(
        prog="python -m analysis.twins",
        description="Front networks with lambda > 0 against their twins with lambda = 0, paired by validation image.",
    )
    add_study_arguments(parse)
    parse.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from analysis.load import ledger_from, load_study, repeated_options
    from analysis.pareto import front_mask

    ledger, _ = ledger_from(args)
    study = load_study(ledger)
    pairs = find_twins(study, front_mask(study))
    results = report_twins(ledger, study, pairs)
    if args.json:
        print(json.dumps({"pairs": results}))
    options = repeated_options(args)
    missing = sum(pair.plain is None for pair in pairs)
    print(f"results  the ledger's artifacts {metrics.CHECKPOINT_ARTIFACTS}/{metrics.PER_IMAGE_FILE}", file=sys.stderr)
    if missing:
        print(f"next     the study.run command of {args.study} with --twins trains what is missing", file=sys.stderr)
    else:
        print(f"next     python -m analysis.export {args.study} --out exported{options}", file=sys.stderr)
    return 0


def find_twins(study: StudyTable, on_front: np.ndarray[Any, np.dtype[np.bool_]]) -> list[Pair]:
    """One pair for every front row with lambda > 0; its twin is the first complete trial that differs only in it."""
    same = [name for name in study.params if name not in _FREE]
    columns = [study.column(name) for name in ("seed", *same)]
    keys = [json.dumps([column[i] for column in columns]) for i in range(len(study.trials))]
    weights, states = study.column("reg_weight"), study.column("state")
    plain: dict[str, int] = {}
    for i, key in enumerate(keys):
        if states[i] == metrics.COMPLETE and weights[i] == 0:
            plain.setdefault(key, i)
    return [Pair(int(i), plain.get(keys[i])) for i in on_front.nonzero()[0] if (weights[i] or 0) > 0]


def report_twins(ledger: Ledger, study: StudyTable, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Compare every pair that is complete, print it on stdout, and return the numbers."""
    from study.faithfulness.statistics import RESAMPLES, compare, over_pairs

    trials = study.column("trial")
    found = [pair for pair in pairs if pair.plain is not None]
    print(f"\ntwins: {len(found)} of {len(pairs)} front networks with λ > 0 have a complete twin with λ = 0")
    if not found:
        return []
    print(
        f"regularized minus plain on the same validation images; 95 % paired bootstrap over images ({RESAMPLES} "
        "resamples): it covers which images were drawn, not the randomness of training (seeds)"
    )
    results: list[dict[str, Any]] = []
    for pair in found:
        assert pair.plain is not None
        title = (
            f"trial {trials[pair.regularized]} (λ {study.column('reg_weight')[pair.regularized]:.3g}) against trial "
        )
        title += f"{trials[pair.plain]} (λ 0)"
        try:
            scores = [_scores_of(ledger, study, row) for row in (pair.regularized, pair.plain)]
            differences = compare(*scores)
        except InputError as error:
            print(f"{title}: not comparable: {error}")
            continue
        print(f"{title}, {len(scores[0]['label'])} images")
        for name, d in differences.items():
            print(f"  {_label(name):<38}{d.mean:+8.2f}  [{d.low:+.2f}, {d.high:+.2f}]  {d.verdict}")
        results.append(
            {
                "regularized": trials[pair.regularized],
                "plain": trials[pair.plain],
                "differences": {
                    n: {"mean": d.mean, "low": d.low, "high": d.high, "verdict": d.verdict}
                    for n, d in differences.items()
                },
            }
        )
    if len(results) > 1:
        print(f"mean over {len(results)} pairs; 95 % t-interval over pairs")
        for name in results[0]["differences"]:
            if all(name in r["differences"] for r in results):
                d = over_pairs([r["differences"][name]["mean"] for r in results])
                print(f"  {_label(name):<38}{d.mean:+8.2f}  [{d.low:+.2f}, {d.high:+.2f}]  {d.verdict}")
    return results


def _label(name: str) -> str:
    if name in PARTS:
        return f"{name.replace('_', ' ')} (%, {'higher' if PARTS[name] == 'maximize' else 'lower'} is better)"
    unit = "pp" if name == "faithfulness" else "%"
    return f"{name} ({unit}, higher is better)"


def _scores_of(ledger: Ledger, study: StudyTable, row: int) -> dict[str, Floats]:
    """Per-image scores of one run, checked against the faithfulness that the ledger records for it."""
    from pyarrow import parquet

    from study.faithfulness.statistics import image_scores

    run_id = study.column("run_id")[row]
    with tempfile.TemporaryDirectory() as folder:
        artifact = f"{metrics.CHECKPOINT_ARTIFACTS}/{metrics.PER_IMAGE_FILE}"
        table = parquet.read_table(ledger.download(run_id, artifact, Path(folder)), memory_map=False)
        scores = image_scores({name: table[name].to_numpy() for name in table.column_names})
    recorded = study.column(metrics.FAITHFULNESS.ledger_name)[row]
    recomputed = float(scores["faithfulness"].mean())
    if recorded is not None and not abs(recorded - recomputed) <= _AGREEMENT_PP:
        raise InputError(
            f"trial {study.column('trial')[row]}: its per-image scores give faithfulness {recomputed:.3f}, "
            f"the ledger says {recorded:.3f}"
        )
    return scores


if __name__ == "__main__":
    sys.exit(run_command(main))
