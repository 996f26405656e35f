"""What the page holds, and the page itself."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.figures.anytime import anytime_charts, draw_anytime
from analysis.figures.curves import Curves, curves_chart, curves_of, draw_curves
from analysis.figures.effect import draw_effects, effect_chart
from analysis.figures.front import draw_front, drawable, front_chart
from analysis.figures.importance import draw_importance, importance_chart
from analysis.figures.parallel import draw_parallel, parallel_chart
from analysis.report import facts, trials
from analysis.report.thumbnails import Gallery, make_gallery
from analysis.statistics.anytime import Anytime, anytime
from analysis.statistics.effect import Effect, lambda_effects
from analysis.statistics.front import Front, comparable, find_front
from analysis.statistics.importance import Importance, importance
from analysis.twins import EXPLAINED, compare_pair, find_twins, label, over_results
from study.metrics import FAITHFULNESS, OBJECTIVES, Metric
from study.names import COMPLETE, LOG_ARTIFACTS, TRIAL_LOG
from study.spec.eligible import empty_line, reasons_line

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.table import StudyTable
    from study.ledger import Ledger

LISTED = 1000  # trials in the page's table: more make it slow; all of them are in the page's data
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class Content:
    """Everything that the page and the static figures show."""

    front: Front
    way: Anytime
    found: Importance
    effects: list[Effect]
    curves: list[tuple[Metric, Curves]]
    axes: list[str]  # of the parallel coordinates
    gallery: Gallery | None
    why_no_maps: str
    values: dict[str, Any] = field(default_factory=dict)  # for the template
    data: dict[str, Any] = field(default_factory=dict)  # for the page's script


def collect(
    ledger: Ledger, study: StudyTable, curves: pa.Table, source: str | None, typed: str, options: str
) -> Content:
    """Raises :class:`InputError` as the ledger does; networks that cannot be had are said to be missing."""
    from study.ledger.tracking import masked

    front = find_front(study)
    rows = trials.shown_rows(study, front)
    plain = trials.plain_networks(study, front, rows)
    gallery = make_gallery(ledger, study, list(dict.fromkeys([*rows, *(p.row for p in plain.values())])), source)
    reported = [OBJECTIVES[m.name] for m in study.objectives if m.name in OBJECTIVES] or list(OBJECTIVES.values())[:2]
    read = [(m, curves_of(study, curves, m.ledger_name)) for m in reported]
    series: list[tuple[Metric, Curves]] = [(m, c) for m, c in read if any(len(e) > 1 for e, _ in c.values())]
    axes = [n for n in study.varied() if not n.startswith(("data.", "evaluation."))][:10]
    axes += [m.name for m in study.objectives]
    learned, outside = comparable(study), study.not_eligible()
    content = Content(
        front,
        anytime(study, curves, front.eligible),
        importance(study, learned),
        lambda_effects(study, learned),
        series,
        axes,
        gallery if isinstance(gallery, Gallery) else None,
        gallery if isinstance(gallery, str) and rows else "",
    )
    record = ledger.record()
    content.values = {
        "study": study,
        "log": f"{LOG_ARTIFACTS}/{TRIAL_LOG}",
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "counts": study.counts(),
        "total": len(study.trials),
        "objectives": study.objectives,
        "front": front,
        "front_rows": _front_rows(study, front),
        "not_eligible": reasons_line(outside),
        "why_empty": empty_line(outside),
        "reference": ", ".join(f"{m.name} {m.reference:g}" for m in study.objectives),
        "sections": _sections(ledger, study, front, rows, plain, content),
        "method_heads": trials.method_heads(),
        "faithfulness": FAITHFULNESS,
        "gallery": content.gallery,
        "why_no_maps": content.why_no_maps,
        "effects": content.effects,
        "importance": content.found,
        "pairs": _pairs(ledger, study, front),
        "explained": EXPLAINED,
        "cost": facts.cost(study, curves) if len(study.trials) else [],
        "failures": facts.failures(study),
        "environment": facts.environment(study, record.tags, masked(ledger.tracking_uri)),
        "options": masked(options),
        "commands": facts.commands(study, record.tags, masked(options), masked(typed)),
        "specification": facts.specification(study.spec),
        "trials": _trials_table(study, front),
    }
    _draw_inline(study, content)
    return content


def _draw_inline(study: StudyTable, content: Content) -> None:
    drawn: dict[str, Any] = {"curves": [], **dict.fromkeys(("front", "legend", "anytime", "parallel", "importance"))}
    axes = []
    if drawable(study, content.front).any():
        drawn["front"], found = front_chart(study, content.front)
        content.data["places"] = found.pop("places")
        drawn["legend"] = found
        drawn["anytime"] = anytime_charts(content.way)
        drawn["parallel"], content.data["parallel"] = parallel_chart(study, content.front, content.axes)
    for metric, found_curves in content.curves:
        chart, place = curves_chart(study, content.front, found_curves, metric)
        drawn["curves"].append(chart)
        axes.append({**place, "of": {row: _compact(*c) for row, c in found_curves.items()}})
    if content.found.shares:
        drawn["importance"] = importance_chart(content.found)
    drawn["effects"] = [effect_chart(e) for e in content.effects if e.levels]
    content.values["charts"] = drawn
    names = ["trial", "seed", "state", *content.axes]
    content.data |= {
        "curves": axes,
        "names": ["λ" if n == "reg_weight" else n for n in names],
        "rows": [[_short(v) for v in row] for row in zip(*(study.column(n) for n in names), strict=True)],
        "reasons": {
            row: reason
            for row, (reason, complete) in enumerate(zip(study.why_not(), study.with_state(COMPLETE), strict=True))
            if reason and complete
        },
        "objectives": [m.name for m in study.objectives],
        "units": [m.unit for m in study.objectives],
        "sections": {s["row"]: s["anchor"] for s in content.values["sections"]},
        "linked": {
            s["row"]: s["plain"]["row"] for s in content.values["sections"] if s["plain"] and s["plain"]["has_maps"]
        },
        "intervals": {s["row"]: [score["interval"] for score in s["scores"]] for s in content.values["sections"]},
    }


def _compact(epochs: Sequence[int], values: Sequence[float]) -> list[float]:
    """First epoch, then the values where every epoch has one; else pairs, marked by a leading 0."""
    if list(epochs) == list(range(epochs[0], epochs[0] + len(epochs))):
        return [epochs[0], *(_short(v) for v in values)]
    return [0, *(x for pair in zip(epochs, map(_short, values), strict=True) for x in pair)]


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def _front_rows(study: StudyTable, front: Front) -> list[dict[str, Any]]:
    made = []
    for row in front.rows:
        scores = [f"{mean:.4g}" for mean in front.means[row]]
        probability = ""
        if front.repeated is not None:
            errors = front.repeated.errors[row]
            scores = [f"{score} ± {error:.2g}" for score, error in zip(scores, errors, strict=True)]
            probability = f"{front.repeated.probability[row]:.2f} ({front.repeated.seeds[row]})"
        made.append(
            {
                "anchor": trials.anchor(study, row),
                "trial": study.column("trial")[row],
                "seed": study.column("seed")[row],
                "params": trials.configuration(study, row),
                "scores": scores,
                "probability": probability,
                "knee": row == front.knee,
            }
        )
    return made


def _sections(
    ledger: Ledger,
    study: StudyTable,
    front: Front,
    rows: Sequence[int],
    plain: dict[int, trials.Plain],
    content: Content,
) -> list[dict[str, Any]]:
    made = trials.sections(ledger, study, front, rows)
    for section in made:
        other = plain.get(section["row"])
        gallery = content.gallery
        section["plain"] = other and {
            "row": other.row,
            "trial": study.column("trial")[other.row],
            "seed": study.column("seed")[other.row],
            "relation": other.relation,
            "has_maps": gallery is not None and other.row in gallery.strips,
        }
        section["missing"] = gallery.missing.get(section["row"], "") if gallery is not None else ""
    return made


def _pairs(ledger: Ledger, study: StudyTable, front: Front) -> dict[str, Any]:
    pairs = find_twins(study, front.mask)
    compared = [compare_pair(ledger, study, pair) for pair in pairs if pair.plain is not None]
    tables = []
    for c in compared:
        rows = [(label(n), *_difference(d)) for n, d in (c.differences or {}).items()]
        tables.append({"title": c.title, "images": c.images, "rows": rows, "why_not": c.why_not})
    over_all = [(label(n), *_difference(d)) for n, d in over_results(compared).items()]
    return {"regularized": len(pairs), "tables": tables, "over_all": over_all, "n": len(compared)}


def _difference(d: Any) -> tuple[str, str, str]:
    return f"{d.mean:+.2f}", f"{d.low:+.2f} to {d.high:+.2f}", d.verdict


def _trials_table(study: StudyTable, front: Front) -> dict[str, Any]:
    """The front first, then by the first objective, then those without one."""
    names = ["trial", "seed", "state", *(n for n in study.varied() if not n.startswith(("data.", "evaluation.")))]
    names = [*names[:12], *(m.name for m in study.objectives), "epoch", "duration_s"]
    key = study.numbers(study.objectives[0].name) * study.objectives[0].sign
    rank = np.where(np.isfinite(key), key, -np.inf)
    order = np.lexsort((-rank, ~front.mask))[:LISTED]
    columns = {n: study.column(n) for n in names}
    if study.not_eligible():
        names.append("not eligible")
        complete = study.with_state(COMPLETE)
        columns["not eligible"] = [why if there else "" for why, there in zip(study.why_not(), complete, strict=True)]
    rows = []
    for row in order:
        cells = [trials.shown(columns[n][row]) for n in names]
        rows.append({"row": int(row), "front": bool(front.mask[row]), "cells": cells})
    heads = {"reg_weight": "λ", "duration_s": "seconds", "epoch": "epochs"}
    return {"head": [heads.get(n, n) for n in names], "rows": rows, "left_out": len(study.trials) - len(rows)}


def draw(study: StudyTable, content: Content, folder: Path) -> list[Path]:
    """Every figure as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    front, written = content.front, []
    if drawable(study, content.front).any():
        written += draw_front(study, front, folder / "front")
        written += draw_anytime(study, content.way, folder / "hypervolume")
        written += draw_parallel(study, front, content.axes, folder / "parallel")
    if content.curves:
        written += draw_curves(study, front, content.curves, folder / "curves")
    if content.found.shares:
        written += draw_importance(study, content.found, folder / "importance")
    if any(e.levels for e in content.effects):
        written += draw_effects(study, content.effects, folder / "lambda")
    return written


def render(content: Content, figures: Sequence[str]) -> str:
    """The page. Everything that it shows is in it; what came from the ledger is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    data = json.dumps(content.data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        **content.values, figures=figures, data=Markup(data), style=Markup(style), script=Markup(script)
    )
