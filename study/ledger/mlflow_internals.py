"""What this project uses of MLflow beyond its public interface. Checked with MLflow 3.17.

``tests/ledger/test_mlflow_internals.py`` fails where another version has changed any of it. The rest of the ledger
uses ``MlflowClient`` alone, and statements on MLflow's tables stand in :mod:`study.ledger.sql`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def engine_of(client: Any) -> Any:
    """SQLAlchemy's engine of the database that an ``MlflowClient`` writes to; None for a tracking server."""
    return getattr(client._tracking_client.store, "engine", None)


def tables() -> Any:
    """The module with the classes that MLflow maps to its tables: ``SqlRun``, ``SqlTag``, ``SqlMetric``, …"""
    from mlflow.store.tracking.dbmodels import models

    return models


def request(client: Any, method: str, path: str, **arguments: Any) -> Any:
    """A tracking server's response, over MLflow's own HTTP session: its credentials, certificates and retries.

    ``arguments`` are those of ``requests``, such as ``params`` and ``json``.
    """
    from mlflow.utils.rest_utils import http_request

    return http_request(client._tracking_client.store.get_host_creds(), path, method, **arguments)


def request_json(client: Any, method: str, path: str, **arguments: Any) -> Any:
    """The JSON content of :func:`request`. Raises ``MlflowException`` where the server refuses."""
    from mlflow.utils.rest_utils import verify_rest_response

    return json.loads(verify_rest_response(request(client, method, path, **arguments), path).content)


def system_metric_readers() -> list[Any]:
    """MLflow's readers of processor, memory, disk, network and, where there are any, NVIDIA GPUs."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    readers: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        readers.append(GPUMonitor())
    except Exception:  # whatever the driver's library raises where there is no GPU
        return readers
    return readers


def read_system_metrics(readers: Sequence[Any]) -> dict[str, float]:
    """MLflow's name of each quantity, which ends in its unit, and its value now."""
    values: dict[str, float] = {}
    for reader in readers:
        reader.clear_metrics()
        reader.collect_metrics()
        values |= reader.aggregate_metrics()
    return values
