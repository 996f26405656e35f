"""Numbers written past MLflow's client are what MLflow's client would have written, and are fenced."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from benchmarks.server import served
from study import names
from study.ledger import Ledger, SupersededError, TrialWriter, sql
from study.ledger.metric_writes import write_numbers
from study.ledger.records import Number

#: Two batches: not finite, later values first, equal steps with later times and with larger values, an old step late.
BATCHES = [
    [Number("a", 1.5, 1000, 1), Number("a", 0.5, 3000, 3), Number("a", 2.5, 2000, 2), Number("b", math.nan, 1000, 1)],
    [Number("a", -1.0, 3000, 3), Number("a", 9.0, 3500, 2), Number("b", math.inf, 2000, 2), Number("c", 1e-300, 1, 0)],
    [Number("d", 4.0, 10, 5), Number("d", 5.0, 10, 5), Number("d", 4.5, 20, 5), Number("b", 7.0, 3000, 2)],
]


def rows(file: Path, table: str, run_id: str) -> list[Any]:
    with sqlite3.connect(file) as db:
        columns = "key, value, timestamp, step, is_nan"
        return sorted(db.execute(f"SELECT {columns} FROM {table} WHERE run_uuid = ?", [run_id]).fetchall())


def through_the_client(client: MlflowClient, run_id: str, batch: list[Number]) -> None:
    values = [Metric(n.key, n.value if math.isfinite(n.value) else math.nan, n.ms, n.step) for n in batch]
    client.log_batch(run_id, metrics=values)


def hold(client: MlflowClient, experiment: str = "0") -> str:
    """A run that belongs to attempt 1."""
    return client.create_run(experiment, tags={names.TAG_ATTEMPT: "1"}).info.run_id


def test_the_rows_are_those_of_mlflow(tracking_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri)
    ours, theirs = hold(client), hold(client)
    for batch in BATCHES:
        for _ in range(2):  # the second time changes nothing
            write_numbers(client, ours, "1", batch)
        through_the_client(client, theirs, batch)
        for table in ("metrics", "latest_metrics"):
            assert rows(tmp_path / "mlflow.db", table, ours) == rows(tmp_path / "mlflow.db", table, theirs) != []
    assert client.get_run(ours).data.metrics["d"] == 4.5


@pytest.mark.slow
def test_a_server_stores_the_same(tracking_uri: str, tmp_path: Path) -> None:
    with served(tmp_path / "mlflow.db") as uri:
        client = MlflowClient(uri)
        ours, theirs = hold(client), hold(client)
        for batch in BATCHES:
            for _ in range(2):
                write_numbers(client, ours, "1", batch)
            through_the_client(client, theirs, batch)
        for table in ("metrics", "latest_metrics"):
            assert rows(tmp_path / "mlflow.db", table, ours) == rows(tmp_path / "mlflow.db", table, theirs) != []
        check_fence(client, lambda run_id: rows(tmp_path / "mlflow.db", "metrics", run_id))
        with pytest.raises(Exception, match="RESOURCE_DOES_NOT_EXIST|not found"):
            write_numbers(client, "0" * 32, "1", BATCHES[0])


def check_fence(client: MlflowClient, stored: Callable[[str], list[Any]]) -> None:
    run_id = hold(client)
    for holder in ("2", None):
        if holder is None:
            client.delete_tag(run_id, names.TAG_ATTEMPT)
        else:
            client.set_tag(run_id, names.TAG_ATTEMPT, holder)
        with pytest.raises(SupersededError, match=f"belongs to attempt {holder}, not to 1"):
            write_numbers(client, run_id, "1", BATCHES[0])
    assert stored(run_id) == []


def test_another_attempts_run_is_left_alone(tracking_uri: str, tmp_path: Path) -> None:
    check_fence(MlflowClient(tracking_uri), lambda run_id: rows(tmp_path / "mlflow.db", "metrics", run_id))


def test_a_deleted_run_takes_nothing(tracking_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri)
    run_id = hold(client)
    client.delete_run(run_id)
    with pytest.raises(RuntimeError, match="is deleted"):
        write_numbers(client, run_id, "1", BATCHES[0])
    with pytest.raises(RuntimeError, match="is not there"):
        write_numbers(client, "0" * 32, "1", BATCHES[0])
    assert rows(tmp_path / "mlflow.db", "metrics", run_id) == []


def test_a_store_with_other_tables_is_mlflows_business(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking_uri)
    run_id, other = hold(client), hold(client)
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        db.execute("ALTER TABLE metrics ADD COLUMN unit TEXT")
    assert not sql.can_write(tmp_path / "mlflow.db")
    monkeypatch.setattr(sql, "insert", None)
    write_numbers(client, run_id, "1", BATCHES[0])
    assert len(rows(tmp_path / "mlflow.db", "metrics", run_id)) == len(BATCHES[0])
    with pytest.raises(SupersededError):
        write_numbers(client, other, "2", BATCHES[0])


def test_many_writers_in_one_process_do_not_wait_for_each_others_connections(ledger: Ledger, tmp_path: Path) -> None:
    """A write through MLflow takes two connections of a pool of fifteen: sixteen at once wait 30 s for nothing."""
    start = threading.Barrier(24)
    told: list[bool] = []

    def tell(trial: int) -> None:
        own = Ledger(ledger.tracking_uri, ledger.study)
        start.wait()
        writer = TrialWriter(own, tmp_path / f"{trial}", trial=trial, seed=0, params={}, tags={})
        writer.start()
        writer.report([{"epoch": 1, "loss": 1.0}])
        told.append(writer.finish(names.COMPLETE, patience=25))

    threads = [threading.Thread(target=tell, args=(trial,)) for trial in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [True] * 24
    assert [record.state for record in ledger.trials()] == [names.COMPLETE] * 24
