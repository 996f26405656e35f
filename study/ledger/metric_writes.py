"""How a run's numbers reach MLflow: by the cheapest way that its store has, and only if the run is the writer's.

See docs/decisions/0006-ledger.md for what each way costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from study import names
from study.ledger import sql
from study.ledger.attempts import check_holder
from study.ledger.mlflow_internals import request_json
from study.ledger.records import Number, finite
from study.ledger.tracking import sqlite_path

NUMBERS_PER_REQUEST = 1000  # MLflow's limit

_RUNS = "/api/2.0/mlflow/runs"


def write_numbers(
    client: Any, run_id: str, attempt: str, numbers: Sequence[Number], tags: Mapping[str, str] | None = None
) -> None:
    """Store at most ``NUMBERS_PER_REQUEST`` numbers if the run belongs to ``attempt``.

    ``tags`` are set with them: in one transaction of a SQLite store, in one request to a server. Raises
    :class:`SupersededError` where the run belongs to another attempt, and what the store raises where it does not
    answer. Writing the same again changes nothing.
    """
    tags = tags or {}
    file = sqlite_path(client.tracking_uri)
    if file is not None and sql.can_write(file):
        sql.insert(file, run_id, attempt, numbers, tags)
    elif client.tracking_uri.startswith(("http://", "https://")):
        _to_server(client, run_id, attempt, numbers, tags)
    else:
        from mlflow.entities import Metric, RunTag

        check_holder(run_id, client.get_run(run_id).data.tags.get(names.TAG_ATTEMPT), attempt)
        client.log_batch(
            run_id,
            metrics=[Metric(n.key, finite(n.value, math.nan), n.ms, n.step) for n in numbers],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )


def _to_server(client: Any, run_id: str, attempt: str, numbers: Sequence[Number], tags: Mapping[str, str]) -> None:
    """As plain JSON: the client would make a protocol buffer of every number first."""
    run = request_json(client, "GET", f"{_RUNS}/get", params={"run_id": run_id})["run"]
    there = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
    check_holder(run_id, there.get(names.TAG_ATTEMPT), attempt)
    if not numbers and not tags:
        return
    batch = {
        "run_id": run_id,
        "metrics": [
            {"key": n.key, "value": finite(n.value, "NaN"), "timestamp": n.ms, "step": n.step}  # JSON has no NaN
            for n in numbers
        ],
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
    }
    request_json(client, "POST", f"{_RUNS}/log-batch", json=batch)
