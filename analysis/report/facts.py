"""The page's plain tables: what it cost, what failed, on what it ran, how to get it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.report.trials import shown
from study import metrics, names

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.table import StudyTable

LISTED = 200  # failures, at most
Table = dict[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, note: str = "", numeric: int = 1) -> Table:
    """Cells as text; columns from ``numeric`` on are aligned right."""
    return {"head": list(head), "rows": [[str(c) for c in row] for row in rows], "note": note, "numeric": numeric}


def cost(study: StudyTable, curves: pa.Table) -> list[Table]:
    """Device hours by state; seconds of an epoch by network and lambda."""
    from analysis.statistics.anytime import busy_seconds, device_hours

    hours, device = device_hours(study, curves)
    states = np.array(study.column("state"), object)
    rows: list[tuple[Any, ...]] = []
    for state, n in study.counts().items():
        mine = hours[states == state]
        share = mine.sum() / hours.sum() if hours.sum() > 0 else 0.0
        rows.append((state, n, _hours(mine.sum()), f"{100 * share:.0f} %", _hours(mine.mean() if n else 0.0)))
    rows.append(("all", len(states), _hours(hours.sum()), "100 %", _hours(hours.mean() if len(hours) else 0.0)))
    by_state = table(("state", "trials", f"{device}-hours", "share", f"{device}-hours a trial"), rows)
    seconds = study.numbers(metrics.EPOCH_SECONDS)
    weights, networks = study.numbers("reg_weight"), study.column("network")
    rows = []
    for network in sorted({n for n in networks if n is not None}):
        of_network = np.array([n == network for n in networks]) & np.isfinite(seconds)
        plain, regularized = (
            float(np.median(seconds[of_network & which])) if (of_network & which).any() else None
            for which in (weights == 0, weights > 0)
        )
        ratio = f"{regularized / plain:.2f}" if plain and regularized else "–"
        rows.append((network, _seconds(plain), _seconds(regularized), ratio))
    note = "medians of each trial's last epoch; trials ran side by side on shared cores, so read the ratio with care"
    epochs = table(("network", "seconds an epoch, λ = 0", "λ > 0", "ratio"), rows, note=note)
    started = [d for d in study.column("started") if d is not None]
    ended = [d for d in study.column("ended") if d is not None]
    wall = (max(ended) - min(started)).total_seconds() / 3600 if ended and started else 0.0
    note = f"training and scoring alone; {_hours(wall)} h on the clock from first start to last end, breaks included"
    by_state["note"] = note + f"; scoring took {_scoring_share(study, curves, busy_seconds(study, curves))}"
    return [by_state, epochs]


def _scoring_share(study: StudyTable, curves: pa.Table, busy: Any) -> str:
    from pyarrow import compute

    mine = curves.filter(compute.equal(curves["metric"], metrics.EVALUATION_SECONDS))
    total = float(np.nansum(mine["value"].to_numpy())) if len(mine) else 0.0
    return f"{100 * total / busy.sum():.0f} % of it" if busy.sum() > 0 else "an unknown part of it"


def _hours(value: float) -> str:
    return f"{value:.3g}" if value >= 0.01 else f"{value:.4f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def failures(study: StudyTable) -> list[Table]:
    """Reasons with their counts, and the trials that are not complete."""
    states, reasons = study.column("state"), study.column("reason")
    rows = [i for i, state in enumerate(states) if state != names.COMPLETE]
    if not rows:
        return []
    counted = Counter((states[i], reasons[i] or "–") for i in rows).most_common(20)
    first = table(("state", "reason", "trials"), [(s, r, n) for (s, r), n in counted], numeric=2)
    params = [n for n in ("network", "reg_weight", "lr") if n in study.params]
    listed = [
        [
            *(shown(study.column(n)[i]) for n in ("trial", "seed", "state", "epoch", *params)),
            reasons[i] or "–",
        ]
        for i in rows[:LISTED]
    ]
    note = f"the first {LISTED} of {len(rows)}" if len(rows) > LISTED else ""
    heads = ("trial", "seed", "state", "last epoch", *("λ" if n == "reg_weight" else n for n in params), "reason")
    return [first, table(heads, listed, note=note, numeric=99)]


def environment(study: StudyTable, tags: Mapping[str, str], ledger: str) -> Table:
    """Versions, identity and protocol, as the ledger holds them."""
    from study import __version__

    rows = [
        ("study", study.name),
        ("fingerprint", tags.get(names.TAG_FINGERPRINT, "–")),
        ("code", tags.get(names.TAG_CODE_VERSION, "–")),
        ("report made by", __version__),
        ("ledger", ledger),
        ("data", shown((study.spec.get("data") or {}).get("source"))),
        ("protocol", _protocol(study)),
        ("faithfulness", f"{metrics.FAITHFULNESS.unit}: {metrics.FAITHFULNESS.describes}"),
        *sorted((k.removeprefix("version."), v) for k, v in tags.items() if k.startswith("version.")),
    ]
    return table(("what", "which"), rows, numeric=99)


def _protocol(study: StudyTable) -> str:
    evaluation = study.spec.get("evaluation") or {}
    methods = ", ".join(evaluation.get("methods") or ()) or "the default methods"
    identities = sorted({p for p in study.column("protocol") if p is not None})
    text = f"{', '.join(identities) or evaluation.get('protocol', '–')} with {methods}"
    images = evaluation.get("images", "–")
    text += f" on {'all' if images is None else images} images"
    masked = evaluation.get("masking_images")
    return f"{text}, {masked} of them masked" if masked else text


def commands(study: StudyTable, tags: Mapping[str, str], options: str, as_typed: str) -> list[tuple[str, str]]:
    """What for, and the command."""
    name = study.name
    ran = [("what was typed for this study, last", tags[names.TAG_COMMAND])] if names.TAG_COMMAND in tags else []
    return [
        *ran,
        (
            "the study again, from the specification below",
            f"python -m study.run specification.yaml --name {name}-again",
        ),
        ("this report again", as_typed),
        ("all trials and curves as Parquet", f"python -m analysis.load {name}{options}"),
        ("the front as a table", f"python -m analysis.pareto {name}{options}"),
        ("what matters, and λ", f"python -m analysis.importance {name}{options}"),
        ("ship the front", f"python -m analysis.export {name} --out exported{options}"),
    ]


def specification(spec: Mapping[str, Any]) -> str:
    """As YAML that study.run takes."""
    import yaml

    kept = {k: v for k, v in spec.items() if v is not None or k == "stopping"}
    if not (spec.get("fidelity") or {}).get("rungs"):
        kept.pop("stopping", None)  # without a rung there is nothing to say of it
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
