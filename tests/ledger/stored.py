"""What MLflow itself says is stored, read past the ledger."""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient

from study.ledger import Ledger


def history_of(ledger: Ledger, run_id: str, metric: str) -> list[tuple[int, float]]:
    """All values of one metric as (epoch, value), by epoch; empty where it was never logged."""
    return sorted((m.step, m.value) for m in MlflowClient(ledger.tracking_uri).get_metric_history(run_id, metric))


def run_of(ledger: Ledger, run_id: str) -> Any:
    return MlflowClient(ledger.tracking_uri).get_run(run_id)
