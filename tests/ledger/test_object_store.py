"""Checkpoints as artifacts in an S3-compatible store, straight from where they were written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from study import names
from study.errors import LedgerError
from study.ledger import Ledger, TrialWriter
from study.ledger import store as store_module

PLACE = "s3://studies/demo/artifacts"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="studies")
    yield bucket
    server.stop()


def test_checkpoints_go_to_the_bucket_once_and_come_back(bucket: object, tracking_uri: str, tmp_path: Path) -> None:
    ledger = Ledger(tracking_uri, "demo")
    ledger.open_study(fingerprint="f" * 64, spec={}, tags={}, artifact_location=PLACE)
    file = tmp_path / names.MODEL_FILE
    file.write_bytes(b"weights")
    for _ in range(2):
        writer = TrialWriter(Ledger(tracking_uri, "demo"), tmp_path / "0000", trial=0, seed=0, params={}, tags={})
        writer.start()
        assert writer.finish(names.COMPLETE, files=[file])
        (stored,) = bucket.objects.all()  # type: ignore[attr-defined]
        assert stored.key.startswith("demo/artifacts/") and stored.get()["Body"].read() == b"weights"
        written = stored.last_modified
    assert written == stored.last_modified
    (record,) = ledger.trials()
    assert record.state == names.COMPLETE
    down = ledger.download(record.run_id, f"{names.CHECKPOINT_ARTIFACTS}/{file.name}", tmp_path / "down")
    assert down.read_bytes() == b"weights"
    assert not list(tmp_path.rglob("artifacts")), "nothing of it went through a local folder"


def test_without_its_client_an_object_store_is_refused(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "find_spec", lambda name: None)
    with pytest.raises(LedgerError, match="pip install boto3"):
        Ledger(tracking_uri, "demo").open_study(fingerprint="f", spec={}, tags={}, artifact_location=PLACE)
    with pytest.raises(LedgerError, match="pip install google-cloud-storage"):
        store_module.check_artifact_store("gs://bucket/x")
    store_module.check_artifact_store("file:///somewhere")
    store_module.check_artifact_store(None)
