"""Record real learning curves for the replay of searches: ``python -m benchmarks.record_curves [--curves 160]``.

Trains points of ``benchmarks/data/space.yaml`` with the product's own trial code: known points, then a scrambled Sobol
sequence, the first of them again with other seeds (that is the noise between trainings). Curves go to
``benchmarks/data/curves.parquet``, a row per epoch; those that are there already are not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from scipy.stats import qmc

from study import metrics
from study.config import TrialConfig
from study.spec.space import Choice, FloatRange, Parameter, Point, Scalar, active, ordered
from study.spec.study_spec import StudySpec, load_spec
from study.storage.atomic import replacing

HERE = Path(__file__).parent / "data"
SPEC, CURVES = HERE / "space.yaml", HERE / "curves.parquet"
#: Epochs with a faithfulness score beside the last: more than the rungs, so that other rungs can be replayed.
SCORED = (1, 2, 3, 4, 6, 9, 13, 18)
REPEATED = 12  # points that are trained with a second seed
_PROTOCOL = b"study.protocol"  # in the table's metadata; a table without it is of paper/1
_COLUMNS = {
    "accuracy": metrics.ACCURACY.ledger_name,
    "accuracy_error": metrics.ACCURACY_ERROR,
    "faithfulness": metrics.FAITHFULNESS.ledger_name,
    "faithfulness_error": metrics.FAITHFULNESS_ERROR,
    "alignment": metrics.ALIGNMENT.ledger_name,
    "loss": metrics.LOSS.ledger_name,
    "epoch_seconds": metrics.EPOCH_SECONDS,
    "evaluation_seconds": metrics.EVALUATION_SECONDS,
}


def points(spec: StudySpec, n: int) -> list[Point]:
    """The known points, then ``n`` less those many of a scrambled Sobol sequence over the space."""
    names = ordered(spec.space)
    found = spec.first_points()
    unit = qmc.Sobol(len(names), seed=spec.seed).random_base2(math.ceil(math.log2(n)))
    for row in unit[: n - len(found)]:
        point: Point = {}
        for name, u in zip(names, row, strict=True):
            if active(spec.space, name, point):
                point[name] = _value(spec.space[name], float(u))
        found.append(point)
    return found


def _value(parameter: Parameter, u: float) -> Scalar:
    """The parameter at the quantile ``u``; a range with ``zero`` is 0 in the lowest tenth."""
    if isinstance(parameter, Choice):
        return parameter.choice[min(int(u * len(parameter.choice)), len(parameter.choice) - 1)]
    low, high = parameter.bounds
    if isinstance(parameter, FloatRange) and parameter.zero:
        if u < 0.1:
            return 0.0
        u = (u - 0.1) / 0.9
    value = low * (high / low) ** u if parameter.log else low + u * (high - low)
    return float(f"{value:.6g}") if isinstance(parameter, FloatRange) else round(value)


def tasks(spec: StudySpec, curves: int) -> list[tuple[int, int, Point]]:
    """(curve, seed, point): every point with the study's seed, the first ones with the next seed too."""
    found = points(spec, curves - REPEATED)
    again = [(i, spec.seed + 1, p) for i, p in enumerate(found[:REPEATED])]
    return [(i, seed, p) for i, (_, seed, p) in enumerate([*((i, spec.seed, p) for i, p in enumerate(found)), *again])]


def record(task: tuple[int, int, Point]) -> list[dict[str, Any]]:
    """Train one curve; a row per epoch. A training that diverges ends with a row of NaN."""
    import torch

    from study.trial.trial import Trial

    torch.set_num_threads(1)
    curve, seed, point = task
    spec = load_spec(SPEC)
    config: TrialConfig = dataclasses.replace(spec.trial_config(point), seed=seed, rungs=SCORED)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(config, Path(folder))
        while not trial.finished:
            report = trial.step()
            values = {name: report.get(key, math.nan) for name, key in _COLUMNS.items()}
            rows.append({"curve": curve, "seed": seed, **point, "epoch": int(report["epoch"]), **values})
    return rows


def protocol_of(spec: StudySpec) -> str:
    """Under which faithfulness is recorded, with its version."""
    from study.faithfulness.protocols import PROTOCOLS

    return PROTOCOLS[spec.trial_config(spec.first_points()[0]).evaluation.protocol].identity


def recorded_protocol(file: Path) -> str:
    """Under which the faithfulness of a table was recorded."""
    return ((parquet.read_schema(file).metadata or {}).get(_PROTOCOL) or b"paper/1").decode()


def write(rows: Sequence[dict[str, Any]], spec: StudySpec) -> None:
    """Atomically; numbers of scores in single precision."""
    kinds = {name: pa.string() if name == "reg_error" else pa.float64() for name in ordered(spec.space)}
    kinds |= {"batch_size": pa.int32()}
    fields = [("curve", pa.int32()), ("seed", pa.int32()), *kinds.items(), ("epoch", pa.int32())]
    scores = [(name, pa.float32()) for name in _COLUMNS]
    schema = pa.schema([*fields, *scores], metadata={_PROTOCOL: protocol_of(spec)})
    ordered_rows = sorted(rows, key=lambda r: (r["curve"], r["epoch"]))
    with replacing(CURVES) as part:
        parquet.write_table(pa.Table.from_pylist(ordered_rows, schema), part, compression="zstd")


def main(argv: Sequence[str] | None = None) -> None:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.record_curves", description=__doc__)
    parse.add_argument("--curves", type=int, default=160)
    parse.add_argument("--processes", type=int, default=2)
    args = parse.parse_args(argv)
    spec = load_spec(SPEC)
    if CURVES.exists() and recorded_protocol(CURVES) != protocol_of(spec):
        parse.error(
            f"{CURVES} holds scores under {recorded_protocol(CURVES)}, and these would be under {protocol_of(spec)}; "
            "move it away to record anew"
        )
    rows = parquet.read_table(CURVES).to_pylist() if CURVES.exists() else []
    there = set(np.unique([row["curve"] for row in rows]).tolist())
    todo = [task for task in tasks(spec, args.curves) if task[0] not in there]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for done, found in enumerate(pool.imap_unordered(record, todo), 1):
            rows += found
            write(rows, spec)
            last = found[-1]
            print(
                f"{len(there) + done}/{args.curves}: epoch {last['epoch']}, accuracy {last['accuracy']:.1f} %, "
                f"faithfulness {last['faithfulness']:+.1f} {metrics.FAITHFULNESS.unit}, "
                f"{sum(r['epoch_seconds'] for r in found):.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
