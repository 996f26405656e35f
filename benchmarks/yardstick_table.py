"""What the scores of many networks say of the candidates: the tables that ``benchmarks.yardstick --table`` prints."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.yardstick_networks import METHODS, MIXES, SAMPLES

#: Candidate -> (column, title). B is the ratio of A to A of the reference.
CANDIDATES = {"A": "masking_excess", "B": "masking_share", "C": "deletion_agreement", "D": "subset_agreement"}
PASSES = {
    "A": "14 a map and method, twice with another image's: 28",
    "B": "as A, for the reference too, and D's 32: 88 for two methods",
    "C": "16, for all maps",
    "D": "16, for all maps",
}
_ABOVE = 25.0  # percent of accuracy from which a network counts as trained
_MARGIN = 0.3  # pp within which a network that learned nothing must stay

Row = Mapping[str, Any]


def value(row: Row, candidate: str, prefix: str = "", half: int | None = None) -> float:
    """A network's score, over the two methods; NaN where it was not measured or is not defined."""
    column = CANDIDATES[candidate]

    def one(source: str, name: str) -> float:
        cell = row.get(f"{source}/{name}")
        if cell is None:
            return math.nan
        return float(cell["mean"] if half is None else cell["halves"][half])

    if candidate == "B":
        reference = row.get("reference/masking_excess")
        if reference is None or not reference["mean"] > 2 * reference["error"]:
            return math.nan
        return 100 * value(row, "A", prefix, half) / one("reference", "masking_excess")
    return float(np.mean([one(f"{prefix}{m}", column) for m in METHODS]))


def error(row: Row, candidate: str, prefix: str = "") -> float:
    """Standard error over images; that of B neglects nothing: both means' relative errors."""
    if candidate == "B":
        share, reference = value(row, "B", prefix), row.get("reference/masking_excess")
        if math.isnan(share) or reference is None:
            return math.nan
        own = value(row, "A", prefix)
        return abs(share) * math.hypot(error(row, "A", prefix) / own, reference["error"] / reference["mean"])
    cells = [row.get(f"{prefix}{m}/{CANDIDATES[candidate]}") for m in METHODS]
    return float(np.mean([math.nan if c is None else c["error"] for c in cells]))


def fall(row: Row, candidate: str, prefix: str) -> float:
    """By how much the score falls under degraded maps, on the same images."""
    own = "paired/" if candidate in "AB" and f"paired/{METHODS[0]}/masking_excess" in row else ""
    return value(row, candidate, own) - value(row, candidate, prefix)


def trained(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r["group"] == "trained" and r["accuracy"] >= _ABOVE]


def table(rows: Sequence[Row]) -> str:
    """All of it, as Markdown."""
    blocks = [
        networks(rows),
        criteria(rows),
        falls(rows),
        nothing_learned(rows),
        gates(rows),
        curve(rows),
        others(rows),
    ]
    return "\n\n".join(blocks)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _pm(mean: float, se: float, digits: int = 1) -> str:
    return "undefined" if math.isnan(mean) else f"{mean:.{digits}f} ± {se:.{digits}f}"


def networks(rows: Sequence[Row]) -> str:
    """Every network with its scores ± standard error over images."""
    order = {"trained": 0, "untrained": 2, "collapsed": 3, "shuffled": 4, "deletions": 5}
    shown = sorted((r for r in rows if r["group"] in order), key=lambda r: (order[r["group"]], r["name"]))
    body = []
    for r in shown:
        accuracy = "–" if r["accuracy"] is None else f"{r['accuracy']:.1f}"
        body.append(
            [r["name"], r["group"], accuracy, f"{r['temperature']:.2f}"]
            + [_pm(value(r, c), error(r, c), 2 if c == "A" else 1) for c in CANDIDATES]
        )
    return "**Networks**\n\n" + _markdown(["network", "group", "accuracy %", "T", "A pp", "B %", "C %", "D %"], body)


def seed_deviation(rows: Sequence[Row], of: Callable[[Row], float]) -> float:
    """Root mean square over pairs of seeds, divided by √2."""
    by_name = defaultdict(list)
    for r in trained(rows):
        by_name[r["name"].rsplit("-", 2)[0]].append(of(r))
    differences = [v[0] - v[1] for v in by_name.values() if len(v) == 2]
    return float(np.sqrt(np.nanmean(np.square(differences)) / 2))


def _residuals(accuracy: np.ndarray, score: np.ndarray) -> np.ndarray:
    slope, intercept = np.polyfit(accuracy, score, 1)
    return score - slope * accuracy - intercept


def _correlation(a: np.ndarray, b: np.ndarray) -> str:
    kept = np.isfinite(a) & np.isfinite(b)
    if kept.sum() < 4:
        return "–"
    low, high = stats.pearsonr(a[kept], b[kept]).confidence_interval()
    return f"{np.corrcoef(a[kept], b[kept])[0, 1]:.2f} [{low:.2f}, {high:.2f}]"


def criteria(rows: Sequence[Row]) -> str:
    """The criteria of docs/decisions/0005, per candidate."""
    of = trained(rows)
    accuracy = np.array([r["accuracy"] for r in of])
    body = []
    for c in CANDIDATES:
        seeds = seed_deviation(rows, lambda r, c=c: value(r, c))  # type: ignore[misc]
        scores = np.array([value(r, c) for r in of])
        kept = np.isfinite(scores)
        halves = [np.array([value(r, c, half=h) for r in of]) for h in (0, 1)]
        blurred = np.array([value(r, c, "blur/") for r in of])
        residuals = [_residuals(accuracy[kept], v[kept]) for v in (*halves, scores, blurred)]
        falls_by = [np.nanmean([fall(r, c, f"mix{q}/") for r in of]) / seeds for q in MIXES]
        layers = np.nanmean([fall(r, c, "layers/") for r in of]) / seeds
        body.append(
            [
                f"{c} {CANDIDATES[c].replace('_', ' ')}",
                f"{np.nanmean(scores):.1f}",
                f"{seeds:.2f}",
                *(f"{f:.1f}" for f in falls_by),
                f"{layers:.1f}",
                _correlation(residuals[0], residuals[1]),
                _correlation(residuals[2], residuals[3]),
                _correlation(accuracy, scores),
                PASSES[c],
            ]
        )
    head = [
        "candidate", "mean", "deviation between seeds", "fall at 25 %", "50 %", "75 %", "layers drawn anew",
        "residuals: two halves of images", "residuals: mean colour, blur", "with accuracy", "passes an image",
    ]  # fmt: skip
    range_of = f"{accuracy.min():.0f} to {accuracy.max():.0f} %"
    title = f"**Criteria**, over {len(of)} networks of {range_of}; falls in deviations between seeds"
    return f"{title}\n\n" + _markdown(head, body)


def falls(rows: Sequence[Row]) -> str:
    """Per method: the mean score under degraded maps, in the score's own unit."""
    of, body = trained(rows), []
    for m in METHODS:
        for c in ("A", "C", "D"):
            cells = []
            for prefix in ("paired/" if c == "A" else "", *(f"mix{q}/" for q in MIXES), "layers/"):
                values = [r[f"{prefix}{m}/{CANDIDATES[c]}"]["mean"] for r in of if f"{prefix}{m}/{CANDIDATES[c]}" in r]
                cells.append(f"{np.mean(values):.1f}")
            body.append([m, f"{c} {CANDIDATES[c].replace('_', ' ')}", *cells])
    return "**Degraded maps**, means over the same networks\n\n" + _markdown(
        ["method", "candidate", "own", "25 %", "50 %", "75 %", "layers drawn anew"], body
    )


def nothing_learned(rows: Sequence[Row]) -> str:
    """Means over seeds with 95 % intervals; two one-sided tests of A within the margin."""
    body = []
    samples = [f"{state}{sample.name}" for sample in SAMPLES for state in ("untrained", "collapsed")]
    for group in (*samples, "shuffled"):
        of = [r for r in rows if r["group"] == group]
        if len(of) < 2:
            continue
        for name, c, prefix in (("A, calibrated", "A", ""), ("A, T = 1", "A", "T1/"), ("C", "C", ""), ("D", "D", "")):
            v = np.array([value(r, c, prefix) for r in of])
            if not np.isfinite(v).all():
                continue
            se = v.std(ddof=1) / math.sqrt(len(v))
            half = stats.t.ppf(0.975, len(v) - 1) * se
            cells = [f"{v.mean():.2f} [{v.mean() - half:.2f}, {v.mean() + half:.2f}]"]
            if c == "A":
                p = max(
                    stats.t.sf((v.mean() + _MARGIN) / se, len(v) - 1),
                    stats.t.cdf((v.mean() - _MARGIN) / se, len(v) - 1),
                )
                cells.append(f"p = {p:.4f}")
            else:
                cells.append("")
            body.append([group, str(len(v)), name, *cells])
    return "**Networks that learned nothing**, seeds on disjoint images\n\n" + _markdown(
        ["networks", "seeds", "candidate", "mean over seeds [95 %]", f"equivalent to 0 within ± {_MARGIN} pp"], body
    )


def gates(rows: Sequence[Row]) -> str:
    """The largest change by confidence, and what stand-ins get of the network's own map's score."""
    of = [r for r in rows if r["group"] == "gates"]
    if not of:
        return "**Gates**: not measured"
    body = []
    for column in ("masking_excess", "deletion_agreement", "subset_agreement"):
        changes = []
        for r in of:
            plain = r["confidence"]["1.0"]
            for factor, found in r["confidence"].items():
                if factor != "1.0":
                    changes += [
                        abs(v["mean"] / plain[k]["mean"] - 1) for k, v in found.items() if k.endswith(f"/{column}")
                    ]
        body.append(
            [
                "head x 1/4, 1/2, 2, 4: largest change of six maps",
                column.replace("_", " "),
                f"{100 * max(changes):.3f} %",
            ]
        )
    again = [r for r in rows if r["group"] == "another image"]
    gated = [(source, source, of) for source in ("centre", "another image", "random")]
    gated += [("another image", f"another image, {len(again)} networks on all images", again)] if again else []
    for source, said, rows_of in gated:
        for column in ("masking_excess", "deletion_agreement", "subset_agreement"):
            own, n = _pooled(rows_of, f"grad_cam/{column}")
            got, error = _pooled_with_error(rows_of, f"{source}/{column}")
            bound = (got + 1.645 * error) / own
            body.append(
                [
                    said,
                    column.replace("_", " "),
                    f"{got:.2f} ± {error:.2f} of {own:.1f}; 95 % bound {100 * bound:.1f} % ({n} images)",
                ]
            )
    for source in ("edges", "another network"):
        for column in ("masking_excess", "deletion_agreement", "subset_agreement"):
            got = np.mean([r["knowing"][f"{source}/{column}"]["mean"] for r in of])
            own, _ = _pooled(of, f"grad_cam/{column}")
            body.append([f"{source} (knows the image)", column.replace("_", " "), f"{got:.2f} of {own:.1f}"])
    return "**Gates**, three trained networks\n\n" + _markdown(
        ["in the place of the own map", "candidate", "found"], body
    )


def _pooled(of: Sequence[Row], key: str) -> tuple[float, int]:
    cells = [r["stand-ins"][key] for r in of]
    n = sum(c["images"] for c in cells)
    return sum(c["mean"] * c["images"] for c in cells) / n, n


def _pooled_with_error(of: Sequence[Row], key: str) -> tuple[float, float]:
    cells = [r["stand-ins"][key] for r in of]
    mean, n = _pooled(of, key)
    return mean, math.sqrt(sum((c["error"] * c["images"]) ** 2 for c in cells)) / n


def curve(rows: Sequence[Row]) -> str:
    """Over a training of 12 epochs, every seed."""
    of = sorted((r for r in rows if r["group"] == "curve"), key=lambda r: (_epoch(r), r["seed"]))
    body = [
        [str(_epoch(r)), str(r["seed"]), f"{r['accuracy']:.1f}", f"{r['temperature']:.2f}"]
        + [_pm(value(r, c), error(r, c)) for c in CANDIDATES]
        for r in of
    ]
    return "**Over a training** (airbench16, λ = 0, 12 epochs)\n\n" + _markdown(
        ["epoch", "seed", "accuracy %", "T", "A pp", "B %", "C %", "D %"], body
    )


def _epoch(row: Row) -> int:
    return int(row["name"].split("epoch")[1].split("-")[0])


def others(rows: Sequence[Row]) -> str:
    """What several other images are worth to the standard error of C."""
    of = [r["others"] for r in trained(rows) if "others" in r]
    if not of:
        return ""
    counts = list(of[0])
    return "**Standard error of C (pp, 1,000 images, Grad-CAM) by the number of other images**\n\n" + _markdown(
        counts, [[f"{np.mean([o[k] for o in of]):.2f}" for k in counts]]
    )
