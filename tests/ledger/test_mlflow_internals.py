"""What is used of MLflow beyond its public interface is there, and answers as the ledger expects.

A failure here says that this version of MLflow has changed it: see ``study/ledger/mlflow_internals.py``.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from benchmarks.server import served
from study.ledger import mlflow_internals, sql


def test_a_database_has_an_engine_and_the_tables_that_are_read(tracking_uri: str) -> None:
    engine = mlflow_internals.engine_of(MlflowClient(tracking_uri))
    with engine.connect() as db:
        assert db.exec_driver_sql("SELECT count(*) FROM experiments").scalar() == 1
    tables = mlflow_internals.tables()
    expected = {
        "SqlRun": {"run_uuid", "status", "start_time", "end_time", "lifecycle_stage", "experiment_id"},
        "SqlTag": {"run_uuid", "key", "value"},
        "SqlParam": {"run_uuid", "key", "value"},
        "SqlMetric": {"run_uuid", "key", "value", "timestamp", "step", "is_nan"},
        "SqlLatestMetric": {"run_uuid", "key", "value", "timestamp", "step", "is_nan"},
    }
    for name, columns in expected.items():
        assert columns <= {column.name for column in getattr(tables, name).__table__.columns}, name


def test_a_sqlite_store_has_the_tables_that_are_written_to(tracking_uri: str, tmp_path: Path) -> None:
    assert sql.can_write(tmp_path / "mlflow.db"), "every number would take the slow way through MLflow's client"


@pytest.mark.slow
def test_a_server_answers_over_mlflows_own_session(tracking_uri: str, tmp_path: Path) -> None:
    with served(tmp_path / "mlflow.db") as uri:
        client = MlflowClient(uri)
        assert mlflow_internals.engine_of(client) is None
        run_id = client.create_run("0").info.run_id
        path = "/api/2.0/mlflow/runs/get"
        assert mlflow_internals.request(client, "GET", path, params={"run_id": run_id}).status_code == 200
        run = mlflow_internals.request_json(client, "GET", path, params={"run_id": run_id})["run"]
        assert run["info"]["run_id"] == run_id and "data" in run
        with pytest.raises(MlflowException, match="not found"):
            mlflow_internals.request_json(client, "GET", path, params={"run_id": "0" * 32})


def test_the_functions_of_a_server_take_what_they_are_given() -> None:
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    assert list(inspect.signature(http_request).parameters)[:3] == ["host_creds", "endpoint", "method"]
    assert list(inspect.signature(verify_rest_response).parameters)[:2] == ["response", "endpoint"]
    creds = object()
    assert RestStore(lambda: creds).get_host_creds() is creds


def test_system_metrics_are_read() -> None:
    values = mlflow_internals.read_system_metrics(mlflow_internals.system_metric_readers())
    expected = {"cpu_utilization_percentage", "system_memory_usage_percentage", "disk_available_megabytes"}
    assert expected <= values.keys() and all(isinstance(value, float) for value in values.values())


def test_only_two_files_go_beyond_the_public_interface() -> None:
    private = re.compile(r"mlflow\.(store|utils|system_metrics|tracking\._)|\._tracking_client|dbmodels")
    statements = re.compile(r"sqlite3|INSERT INTO|PRAGMA|sqlalchemy")
    ledger = list(Path(sql.__file__).parent.glob("*.py"))
    assert {file.name for file in ledger if private.search(file.read_text())} == {"mlflow_internals.py"}
    assert {file.name for file in ledger if statements.search(file.read_text())} == {"sql.py"}
