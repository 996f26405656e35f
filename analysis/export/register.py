"""MLflow's model registry: exported networks as versions that load without this project, and their aliases."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.export.card import README_FILE
from analysis.export.formats import FILES, INPUT, ONNX, OUTPUT
from study import names
from study.errors import LedgerError

if TYPE_CHECKING:
    from study.ledger import Ledger

ARTIFACTS = "export"  # artifact folder of the run
TAG_SHA256 = "study.onnx_sha256"  # of the version's model.onnx
TAG_WEIGHTS = "study.weights_sha256"


def check_registry(ledger: Ledger, name: str) -> None:
    """Raises :class:`LedgerError` where the ledger's MLflow has no registry that answers."""
    with _registry(ledger) as client:
        client.search_model_versions(f"name='{name}'", max_results=1)


def register_networks(ledger: Ledger, name: str, out: Path, manifest: Mapping[str, Any]) -> list[str]:
    """One version of the registered model ``name`` per network of an export that has ONNX files; what was done.

    A version belongs to the run that trained it; its files are artifacts of that run, an MLflow model that
    ``mlflow.pyfunc.load_model("models:/NAME@knee")`` loads. A network that is a version already stays that version.
    Aliases move to the networks of this export; those of roles that it does not hold stay where they are. Raises
    :class:`LedgerError` where MLflow refuses: the export itself is complete then.
    """
    lines = []
    with _registry(ledger) as client:
        _ensure_model(client, name, str(manifest["study"]))
        for entry in manifest["networks"]:
            version = _find(client, name, entry) or _create(client, name, out, manifest, entry)
            for role in entry["roles"]:
                client.set_registered_model_alias(name, role, version)
            also = f" as {', '.join(entry['roles'])}" if entry["roles"] else ""
            lines.append(f"{name} version {version}: {entry['folder']}{also}")
    return lines


def _ensure_model(client: Any, name: str, study: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={names.TAG_STUDY: study})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find(client: Any, name: str, entry: Mapping[str, Any]) -> str | None:
    """A ready version of the same weights, from the same run."""
    for version in client.search_model_versions(f"name='{name}'"):
        same = version.run_id == entry["run_id"] and version.tags.get(TAG_WEIGHTS) == entry["weights_sha256"]
        if same and version.status == "READY":
            return str(version.version)
    return None


def _create(client: Any, name: str, out: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    sha256 = manifest["files"][f"{entry['folder']}/{FILES[ONNX]}"]["sha256"]
    place = f"{ARTIFACTS}/{sha256[:12]}"
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        _write_mlflow_model(out / entry["folder"], model, entry)
        client.log_artifacts(entry["run_id"], str(model), place)
    test = entry["test_scores"]
    tags = {
        names.TAG_STUDY: manifest["study"],
        names.TAG_TRIAL: entry["trial"],
        names.TAG_SEED: entry["seed"],
        names.TAG_FINGERPRINT: manifest["fingerprint"],
        names.TAG_PROTOCOL: test["protocol"],
        TAG_SHA256: sha256,
        TAG_WEIGHTS: entry["weights_sha256"],
        "network": entry["network"],
        "reg_weight": f"{entry['reg_weight']:.6g}",
        "temperature": f"{entry['temperature']:.6g}",
        "test/accuracy": f"{test['accuracy']:.2f}",
        "test/faithfulness": f"{test['faithfulness']:+.2f}",
    }
    made = client.create_model_version(
        name,
        source=f"{client.get_run(entry['run_id']).info.artifact_uri.rstrip('/')}/{place}",
        run_id=entry["run_id"],
        tags={key: str(value) for key, value in tags.items()},
        description=(out / entry["folder"] / README_FILE).read_text()[:4000],
    )
    return str(made.version)


def _write_mlflow_model(folder: Path, model: Path, entry: Mapping[str, Any]) -> None:
    """The exported folder, with the description by which MLflow loads its ONNX file."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    proto = onnx.load(str(folder / FILES[ONNX]))
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 32, 32, 3), INPUT)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, entry["n_classes"]), OUTPUT)]),
    )
    mlflow.onnx.save_model(
        proto,
        str(model),
        signature=signature,
        pip_requirements=[f"{package.__name__}=={package.__version__}" for package in (mlflow, onnx, np, _runtime())],
        onnx_execution_providers=["CPUExecutionProvider"],  # a GPU is asked for where there is one
        save_as_external_data=False,
    )
    for file in folder.iterdir():
        shutil.copy2(file, model / file.name)  # model.onnx as it was hashed, not as MLflow wrote it again


def _runtime() -> Any:
    import onnxruntime

    return onnxruntime


@contextlib.contextmanager
def _registry(ledger: Ledger) -> Iterator[Any]:
    """A client; what MLflow raises meanwhile becomes a :class:`LedgerError`."""
    from study.ledger.store import connect
    from study.ledger.tracking import first_line

    client = connect(ledger.tracking_uri)
    from mlflow.exceptions import MlflowException

    try:
        yield client
    except MlflowException as error:
        raise LedgerError(
            f"--register: MLflow's registry refuses ({first_line(error)}); leave --register out, or see to the server"
        ) from None
