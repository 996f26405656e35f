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

from study import metrics, names
from study.command import Parser, refuse_empty, run_command
from study.config import WITH_LAMBDA
from study.errors import ArtifactError, ComparisonError
from study.metrics import FAITHFULNESS, OBJECTIVES, PARTS
from study.spec.eligible import empty_line

if TYPE_CHECKING:
    import numpy as np

    from analysis.table import StudyTable
    from study.faithfulness.statistics import Difference, Floats
    from study.ledger import Ledger

#: Twins differ in lambda and in what exists only with it; a path says nothing of content.
_FREE = ("reg_weight", *WITH_LAMBDA, "data.source")
EXPLAINED = (
    "regularized minus plain on the same validation images; 95 % paired bootstrap over images (10000 resamples): it "
    "covers which images were drawn, not the randomness of training (seeds)"
)
_AGREEMENT = 0.01  # recomputed and recorded faithfulness must agree so far


@dataclass(frozen=True)
class Pair:
    """Rows of the table of trials: ``regularized`` (lambda > 0) and its ``plain`` twin (None: not trained)."""

    regularized: int
    plain: int | None


def parser() -> argparse.ArgumentParser:
    from analysis.load import add_study_arguments

    parse = Parser(
        prog="python -m analysis.twins",
        description="Front networks with lambda > 0 against their twins with lambda = 0, paired by validation image.",
    )
    add_study_arguments(parse)
    parse.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    from analysis.load import ledger_from, load_study, repeated_options
    from analysis.statistics.front import eligible, front_mask

    ledger, _ = ledger_from(args)
    study = load_study(ledger)
    pairs = find_twins(study, front_mask(study, eligible(study)))
    results = report_twins(ledger, study, pairs)
    if args.json:
        print(json.dumps({"pairs": results}))
    options = repeated_options(args)
    missing = sum(pair.plain is None for pair in pairs)
    print(f"results  the ledger's artifacts {names.CHECKPOINT_ARTIFACTS}/{names.PER_IMAGE_FILE}", file=sys.stderr)
    if missing:
        print(f"next     the study.run command of {args.study} with --twins trains what is missing", file=sys.stderr)
    else:
        print(f"next     python -m analysis.export {args.study} --out exported{options}", file=sys.stderr)
    return 0


def find_twins(study: StudyTable, on_front: np.ndarray[Any, np.dtype[np.bool_]]) -> list[Pair]:
    """One pair for every front row with lambda > 0; its twin is the first complete trial that differs only in it.

    A twin is there to be compared with: it need not be eligible for the front itself.
    """
    same = [name for name in study.params if name not in _FREE]
    columns = [study.column(name) for name in ("seed", *same)]
    keys = [json.dumps([column[i] for column in columns]) for i in range(len(study.trials))]
    weights, states = study.column("reg_weight"), study.column("state")
    plain: dict[str, int] = {}
    for i, key in enumerate(keys):
        if states[i] == names.COMPLETE and weights[i] == 0:
            plain.setdefault(key, i)
    return [Pair(int(i), plain.get(keys[i])) for i in on_front.nonzero()[0] if (weights[i] or 0) > 0]


def report_twins(ledger: Ledger, study: StudyTable, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Compare every pair that is complete, print it on stdout, and return the numbers."""
    found = [pair for pair in pairs if pair.plain is not None]
    if "" not in study.why_not():
        print(f"\ntwins: there is no front: {empty_line(study.not_eligible())}")
        return []
    print(f"\ntwins: {len(found)} of {len(pairs)} front networks with λ > 0 have a complete twin with λ = 0")
    if not found:
        return []
    print(EXPLAINED)
    results = []
    for pair in found:
        compared = compare_pair(ledger, study, pair)
        if compared.differences is None:
            print(f"{compared.title}: not comparable: {compared.why_not}")
            continue
        print(f"{compared.title}, {compared.images} images")
        for name, d in compared.differences.items():
            print(_line(name, d))
        results.append(compared)
    over_all = over_results(results)
    if over_all:
        print(f"mean over {len(results)} pairs; 95 % t-interval over pairs")
        for name, d in over_all.items():
            print(_line(name, d))
    return [compared.as_json() for compared in results]


def _line(name: str, d: Difference) -> str:
    return f"  {label(name):<{_LABELLED}}{d.mean:+8.2f}  [{d.low:+.2f}, {d.high:+.2f}]  {d.verdict}"


@dataclass(frozen=True)
class Compared:
    """Regularized minus plain on the same images; ``differences`` is None where ``why_not`` says why."""

    regularized: int  # trial numbers
    plain: int
    title: str
    images: int
    differences: dict[str, Difference] | None
    why_not: str = ""

    def as_json(self) -> dict[str, Any]:
        differences = {
            n: {"mean": d.mean, "low": d.low, "high": d.high, "verdict": d.verdict}
            for n, d in (self.differences or {}).items()
        }
        return {"regularized": self.regularized, "plain": self.plain, "differences": differences}


def compare_pair(ledger: Ledger, study: StudyTable, pair: Pair) -> Compared:
    """A pair that has its twin.

    Missing or different per-image scores, and scores under two protocols, are said in ``why_not``.
    """
    from study.faithfulness.statistics import compare, image_scores

    assert pair.plain is not None
    numbers = [study.column("trial")[row] for row in (pair.regularized, pair.plain)]
    weight = study.column("reg_weight")[pair.regularized]
    reason = study.why_not()[pair.plain]
    twin = f"λ 0; not eligible: {reason}" if reason else "λ 0"
    title = f"trial {numbers[0]} (λ {weight:.3g}) against trial {numbers[1]} ({twin})"
    try:
        protocols = [study.column("protocol")[row] for row in (pair.regularized, pair.plain)]
        if None not in protocols and protocols[0] != protocols[1]:
            raise ComparisonError(
                f"they are scored under {protocols[0]} and {protocols[1]}; python -m study.rescore {study.name}"
            )
        scores = [image_scores(per_image(ledger, study, row)) for row in (pair.regularized, pair.plain)]
        return Compared(numbers[0], numbers[1], title, len(scores[0]["label"]), compare(*scores))
    except (ArtifactError, ComparisonError) as error:
        return Compared(numbers[0], numbers[1], title, 0, None, str(error))


def over_results(results: Sequence[Compared]) -> dict[str, Difference]:
    """Means over pairs with t-intervals; empty for fewer than two."""
    from study.faithfulness.statistics import over_pairs

    kept = [r.differences for r in results if r.differences is not None]
    if len(kept) < 2:
        return {}
    return {name: over_pairs([d[name].mean for d in kept]) for name in kept[0] if all(name in d for d in kept)}


def label(name: str) -> str:
    """A score's name with its unit and direction. What other images' maps get is neither better nor worse."""
    shown = name.replace("_", " ")
    if name == "other_excess":
        return f"{shown} (pp)"
    if name in OBJECTIVES:
        unit, direction = OBJECTIVES[name].unit, OBJECTIVES[name].direction
    else:
        unit, direction = "%", PARTS.get(name, "minimize")
    return f"{shown} ({unit}, {'higher' if direction == 'maximize' else 'lower'} is better)"


_LABELLED = 2 + max(len(label(name)) for name in (FAITHFULNESS.name, *(m.name for m in metrics.CANDIDATES)))


def per_image(ledger: Ledger, study: StudyTable, row: int) -> dict[str, Floats]:
    """The columns of one run's per-image scores, checked against the faithfulness that the ledger records for it.

    Raises :class:`ArtifactError`: no such artifact, or another faithfulness than recorded.
    """
    from study.faithfulness.report import read_per_image
    from study.faithfulness.statistics import image_scores

    run_id = study.column("run_id")[row]
    with tempfile.TemporaryDirectory() as folder:
        artifact = f"{names.CHECKPOINT_ARTIFACTS}/{names.PER_IMAGE_FILE}"
        columns = read_per_image(ledger.download(run_id, artifact, Path(folder)))
    recorded = study.column(FAITHFULNESS.ledger_name)[row]
    recomputed = float(image_scores(columns)["faithfulness"].mean())
    if recorded is not None and not abs(recorded - recomputed) <= _AGREEMENT:
        raise ArtifactError(
            f"trial {study.column('trial')[row]}: its per-image scores give faithfulness {recomputed:.3f}, "
            f"the ledger says {recorded:.3f}"
        )
    return columns


if __name__ == "__main__":
    sys.exit(run_command(main))
