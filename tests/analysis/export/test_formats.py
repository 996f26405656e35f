"""Every network of the house as files: the same logits in processes of their own, from pixels, for any batch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.export.fetch import Proven
from analysis.export.formats import FILES, FORMATS, ONNX, SAFETENSORS, TORCH_EXPORT, write_formats
from analysis.export.parity import check_parity, reload
from study.config import TrialConfig
from study.data import Dataset, open_dataset
from study.errors import ArtifactError
from study.networks import build
from study.training.checkpoint import load_model, save_model


@pytest.fixture(scope="session")
def dataset(config: TrialConfig) -> Dataset:
    return open_dataset(config.data)


def made(name: str, folder: Path, dataset: Dataset, config: TrialConfig) -> Proven:
    """As after a training: batch-norm has seen images, and logits differ between them."""
    network = build(name, 100)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, 3, 32, 32))
        network.head.weight *= 20  # type: ignore[operator, union-attr]
    card = {"network": name, "n_classes": 100, "mean": dataset.mean, "std": dataset.std, "classes": ["λ", *"abc"]}
    save_model(folder, network, card)
    network, card = load_model(folder)
    return Proven(0, folder, network, card, config, dataset, 0.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.soak), "mobilenet_v2", "airbench16"])
def test_the_networks_of_the_paper(name: str, tmp_path: Path, dataset: Dataset, config: TrialConfig) -> None:
    proven = made(name, tmp_path / "model", dataset, config)
    write_formats(proven.network, proven.card, proven.folder, FORMATS)
    (found,) = check_parity([proven], FORMATS)
    print(name, json.dumps(found))
    assert found["safetensors"]["max_logit_difference"] == 0
    assert found[TORCH_EXPORT]["max_logit_difference"] <= 1e-4
    assert found[ONNX]["max_logit_difference"] <= 1e-4
    images = dataset.validation.images[:1].transpose(0, 2, 3, 1)
    ((logits, _),) = reload([proven.folder / FILES[ONNX]], ONNX, [np.ascontiguousarray(images)])
    assert np.ptp(logits) > 1, "logits that are all alike prove nothing"


@pytest.mark.slow
def test_a_file_of_another_network_is_refused(tmp_path: Path, dataset: Dataset, config: TrialConfig) -> None:
    proven = made("tiny", tmp_path / "one", dataset, config)
    other = made("tiny", tmp_path / "other", dataset, config)
    for p in (proven, other):
        write_formats(p.network, p.card, p.folder, (SAFETENSORS, ONNX))
    for kind in (SAFETENSORS, ONNX):
        (proven.folder / FILES[kind]).rename(tmp_path / "kept")
        (proven.folder / FILES[kind]).write_bytes((other.folder / FILES[kind]).read_bytes())
        with pytest.raises(ArtifactError, match="damaged" if kind == SAFETENSORS else "logits that differ"):
            check_parity([proven], [kind])
        (tmp_path / "kept").replace(proven.folder / FILES[kind])
    (proven.folder / FILES[ONNX]).write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="a fresh process cannot load one/model.onnx"):
        check_parity([proven], [ONNX])


@pytest.mark.slow
def test_files_say_what_they_are(tmp_path: Path, dataset: Dataset, config: TrialConfig) -> None:
    import onnx

    proven = made("tiny", tmp_path / "model", dataset, config)
    write_formats(proven.network, proven.card, proven.folder, (ONNX,))
    assert sorted(p.name for p in proven.folder.iterdir()) == ["model.json", "model.onnx"]
    model = onnx.load(str(proven.folder / FILES[ONNX]))
    onnx.checker.check_model(model, full_check=True)
    (images,), (logits,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 32, 32, 3]
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["batch", 100]
    said = {p.key: p.value for p in model.metadata_props}
    assert json.loads(said["classes"])[0] == "λ" and "uint8 (N, 32, 32, 3)" in said["input"]
    again = made("tiny", tmp_path / "again", dataset, config)
    again = dataclasses.replace(again, network=proven.network, card=proven.card)
    write_formats(again.network, again.card, again.folder, (ONNX,))
    assert (again.folder / FILES[ONNX]).read_bytes() == (proven.folder / FILES[ONNX]).read_bytes()
