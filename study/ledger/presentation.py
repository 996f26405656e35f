"""What MLflow's pages show of a study without set-up: descriptions, links, a saved view with columns and charts.

MLflow keeps all of it in tags: notes as markdown, a view as the JSON that the page itself saves under *Views*. Nothing
here is read back, and a note or view that a person has edited is not overwritten.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from study import metrics, names

NOTE = "mlflow.note.content"
VIEW = "study"  # the saved view's identifier in links

_KIND = "mlflow.experimentKind"
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_TAG_CHARACTERS = 4900  # MLflow takes 5,000


def view_path(experiment_id: str, *, charts: bool = False) -> str:
    """The part of the view's URL after the server's address."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}{mode}"


def experiment_tags(study: str, experiment_id: str, spec: Mapping[str, Any], now_ms: int) -> dict[str, str]:
    """Kind, description and view of a study's experiment. ``spec``: the resolved specification."""
    view = json.dumps(
        {"name": "Trials", "createdAt": now_ms, "updatedAt": now_ms, "state": json.dumps(_view(spec))},
        ensure_ascii=False,
    )
    tags = {_KIND: "custom_model_development", NOTE: _experiment_note(study, experiment_id, spec)}
    return tags | ({_VIEW_TAG: view} if len(view) <= _TAG_CHARACTERS else {})


def study_note(study: str, spec: Mapping[str, Any]) -> str:
    """Markdown on the study's own run: what is searched for, where, on what."""
    goals = "\n".join(f"- {_goal(name, direction)}" for name, direction in spec.get("objectives", {}).items())
    space = "\n".join(f"| `{name}` | {_range(value)} |" for name, value in spec.get("space", {}).items())
    fixed = ", ".join(f"{name} {value}" for name, value in spec.get("fixed", {}).items())
    parts = [
        f"The study **{study}**: one nested run per trial and seed.",
        f"Objectives:\n\n{goals}" if goals else "",
        f"| searched | where |\n|---|---|\n{space}" if space else "",
        f"Fixed: {fixed}." if fixed else "",
        f"Images: {_images(spec)}. Seed {spec.get('seed', 0)}. Budget: {_budget(spec)}.",
    ]
    return "\n\n".join(part for part in parts if part)


def trial_note(trial: int, params: Mapping[str, Any]) -> str:
    """Markdown on a trial's run; MLflow's table shows the first line, a summary."""
    weight = params.get("reg_weight")
    loss = "plain cross-entropy"
    if isinstance(weight, (int, float)) and weight > 0:
        error = params.get("reg_error", "")
        loss = f"cross-entropy + λ·R, λ = {weight:.3g}, {error} error of the input gradient"
    words = [f"{params['network']}" if "network" in params else "", loss]
    words += [f"lr {params['lr']:.3g}"] if isinstance(params.get("lr"), (int, float)) else []
    words += [f"{params['epochs']} epochs"] if "epochs" in params else []
    first = f"Trial {trial}: " + ", ".join(word for word in words if word) + "."
    files = f"`{names.CHECKPOINT_ARTIFACTS}/`: weights, their card, and the scores of every validation image."
    log = f"`{names.LOG_ARTIFACTS}/{names.TRIAL_LOG}`: what happened to it (before: see tag `{names.TAG_LOG}`)."
    return f"{first}\n\nArtifacts, once the trial is over: {log}\nOnce it is complete: {files}"


def _experiment_note(study: str, experiment_id: str, spec: Mapping[str, Any]) -> str:
    table, charts = view_path(experiment_id), view_path(experiment_id, charts=True)
    goals = ", ".join(_goal(name, direction) for name, direction in spec.get("objectives", {}).items())
    return (
        f"[**Trials as a table**]({table[1:]}) · [**front and curves**]({charts[1:]})\n\n"
        f"Study {study}{': ' + goals if goals else ''}. The same view is under *Views*."
    )


def _goal(name: str, direction: str) -> str:
    metric = metrics.OBJECTIVES.get(name)
    return f"{direction} `{metric.ledger_name}` ({metric.unit}): {metric.describes}" if metric else name


def _range(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{value}"
    when = value.get("when")
    condition = ""
    if isinstance(when, Mapping):
        bound = when["value"] if isinstance(when["value"], (bool, str)) else f"{when['value']:g}"
        condition = f", where {when['parameter']} {when['op']} {bound}"
    if "choice" in value:
        return " · ".join(str(c) for c in value["choice"]) + condition
    low, high = next((v for k, v in value.items() if k in ("float", "int")), ("", ""))
    scale = ", log" if value.get("log") else ""
    return f"{low} to {high}{scale}{', and 0' if value.get('zero') else ''}{condition}"


def _images(spec: Mapping[str, Any]) -> str:
    data = spec.get("data", {})
    source = str(data.get("source", "")).rstrip("/").rpartition("/")[2]
    count = data.get("train_images")
    return f"{source}, {count:,} for training" if count else source


def _budget(spec: Mapping[str, Any]) -> str:
    trials, epochs = spec.get("budget", {}).get("trials"), spec.get("fidelity", {}).get("max_epochs")
    return f"{trials} trials × {epochs} epochs"


def _view(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Trials alone, best first, with objectives and searched parameters as columns; the front above the curves."""
    goals = [metrics.OBJECTIVES[name] for name in spec.get("objectives", {}) if name in metrics.OBJECTIVES]
    scores = list(dict.fromkeys([m.ledger_name for m in goals] + [metrics.ALIGNMENT.ledger_name]))
    searched = list(spec.get("space", {}))
    columns = [_column("attributes", "Duration"), _column("tags", names.TAG_STATE)]
    columns += [_column("metrics", name) for name in scores] + [_column("params", name) for name in searched]
    charts = _charts([m.ledger_name for m in goals], searched)
    sections = dict.fromkeys(["front", "val", "train", *[name.rpartition("/")[0] for name in scores]])
    best = goals[0] if goals else metrics.ACCURACY
    return {
        "searchFilter": f"tags.`{names.TAG_ROLE}` = 'trial'",
        "orderByKey": _column("metrics", best.ledger_name),
        "orderByAsc": best.direction == "minimize",
        "selectedColumns": columns,
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": name,
                "name": name,
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": True,
                "columns": 2 if name == "front" else 3,
            }
            for name in sections
        ],
        "isAccordionReordered": True,
    }


def _charts(goals: Sequence[str], searched: Sequence[str]) -> list[dict[str, Any]]:
    """A scatter chart of each pair of neighbouring objectives, and parallel coordinates of parameters and objectives.

    The page itself adds the curve of every metric.
    """
    own = {"isGenerated": False, "deleted": False, "metricSectionId": "front"}
    points = [
        {
            **own,
            "uuid": f"points-{i}",
            "type": "SCATTER",
            "runsCountToCompare": 100,
            "displayName": f"{x} against {y}",
            "xaxis": {"type": "METRIC", "key": x},
            "yaxis": {"type": "METRIC", "key": y},
        }
        for i, (x, y) in enumerate(itertools.pairwise(goals))
    ]
    lines = {
        **own,
        "uuid": "lines",
        "type": "PARALLEL",
        "displayName": "what was searched, what it gave",
        "runsCountToCompare": 100,
        "selectedParams": list(searched),
        "selectedMetrics": list(goals),
        "showAllRuns": False,
    }
    return [*points, lines]


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
