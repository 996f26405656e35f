"""Export: what is written is what was measured, in every format, and loads where this project is not installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.export import main
from analysis.export.card import model_card
from analysis.export.command import command_line
from analysis.export.manifest import verify
from study import metrics
from study.command import EXIT_BAD_INPUT, run_command
from study.config import TrialConfig
from study.data import open_dataset
from study.data.augment import normalize
from study.ledger import Ledger
from study.storage.test_log import openings
from study.training.checkpoint import load_model

Trained = tuple[list[Path], dict[str, float]]


def python_blocks(readme: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_format_is_the_trained_network_with_its_test_scores(
    study: Ledger, trained: Trained, storage: Path, tmp_path: Path, config: TrialConfig
) -> None:
    out = tmp_path / "exported"
    command = ["demo", "--out", str(out), "--storage", str(storage), "--register", "demo-net"]
    assert main(command) == 0
    manifest = verify(out)
    (entry,) = manifest["networks"]
    folder = out / "trial-0000"
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "model.json", "model.onnx", "model.pt2", "model.safetensors"
    ]  # fmt: skip
    assert entry["roles"] == ["knee", "best-accuracy", "best-faithfulness"]
    assert entry["max_logit_difference"] <= 1e-5
    assert entry["parity"]["images"] == 40
    assert entry["parity"]["safetensors"]["max_logit_difference"] == 0
    assert 0 <= entry["parity"]["torch_export"]["max_logit_difference"] <= 1e-4
    assert 0 <= entry["parity"]["onnx"]["max_logit_difference"] <= 1e-4

    network, card = load_model(folder)
    original, _ = load_model(trained[0][0].parent)
    x_NCHW = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(x_NCHW), original(x_NCHW))
    assert card["config"] == config.to_dict()
    test = card["test_scores"]
    assert test == entry["test_scores"]
    assert 0 <= test["accuracy_interval"][0] <= test["accuracy"] <= test["accuracy_interval"][1] <= 100
    assert test["faithfulness_interval"][0] <= test["faithfulness"] <= test["faithfulness_interval"][1]
    assert test["faithfulness_images"] == 20 and test["protocol"] == card["protocol"] == "paper/2"
    assert card["temperature"] == entry["temperature"] == trained[1][metrics.TEMPERATURE]
    assert card["scores"]["val/accuracy"] == trained[1]["val/accuracy"]

    (look,) = openings(storage / "demo" / "test_openings.jsonl")
    assert (look["trial"], look["run_id"], look["when"]) == (0, entry["run_id"], test["opened"])
    assert sum(t.startswith("study.test_opening/") for t in study.record().tags) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exported", "results"]

    check_the_card(folder, original, tmp_path)
    words = (folder / "README.md").read_text()
    assert metrics.FAITHFULNESS.describes in words and f"faithfulness ({metrics.FAITHFULNESS.unit}" in words
    assert f"softmax(logits / {entry['temperature']:.4g})" in words and "not comparable" not in words
    assert "under paper/1, not comparable" in model_card(entry, {**card, "protocol": "paper/1"}, manifest)
    check_the_registry(study, entry, folder)


def check_the_card(folder: Path, original: torch.nn.Module, tmp_path: Path) -> None:
    """Its lines of Python run as they stand, in a folder and a process that know nothing of this project."""
    from PIL import Image

    from study.config import DataConfig

    readme = (folder / "README.md").read_text()
    assert "protocol `paper/2`, temperature " in readme and "95 % intervals" in readme and "λ = 0" in readme
    image = open_dataset(DataConfig()).validation.images[0]
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    for name in ("model.onnx", "model.pt2"):
        (alone / name).write_bytes((folder / name).read_bytes())
    Image.fromarray(image.transpose(1, 2, 0)).save(alone / "picture.png")
    pixels, onnx, program = python_blocks(readme)[:3]
    no_project = "import sys; sys.modules.update(study=None, analysis=None)\n"
    code = f"{no_project}{pixels}\n{onnx}\nfirst = logits\n{program}\n"
    code += "import json; print(json.dumps([first.tolist(), logits.tolist()]))"
    result = subprocess.run([sys.executable, "-c", code], cwd=alone, capture_output=True, text=True, check=True)
    with torch.no_grad():
        wanted = original(normalize(torch.tensor(image[None]), (0.5, 0.5, 0.5), (0.24, 0.24, 0.24))).numpy()
    for logits in json.loads(result.stdout):
        assert np.abs(np.array(logits) - wanted).max() <= 1e-4
    import shutil

    shutil.rmtree(alone)


def check_the_registry(study: Ledger, entry: dict[str, object], folder: Path) -> None:
    from mlflow import MlflowClient

    from analysis.export.register import register_networks

    client = MlflowClient(study.tracking_uri)
    for alias in ("knee", "best-accuracy", "best-faithfulness"):
        version = client.get_model_version_by_alias("demo-net", alias)
        assert (version.version, version.run_id) in {(1, entry["run_id"]), ("1", entry["run_id"])}
        assert version.tags["study.protocol"] == "paper/2"
        assert float(version.tags["temperature"]) == pytest.approx(entry["temperature"], rel=1e-5)
    again = register_networks(study, "demo-net", folder.parent, verify(folder.parent))
    assert again == ["demo-net version 1: trial-0000 as knee, best-accuracy, best-faithfulness"]
    assert len(client.search_model_versions("name='demo-net'")) == 1
    code = (
        "import sys; sys.modules.update(study=None, analysis=None, torch=None)\n"
        "import mlflow, numpy as np; mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/demo-net@knee')\n"
        "print(model.predict({'images': np.zeros((3, 32, 32, 3), np.uint8)})['logits'].shape)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, study.tracking_uri], cwd=folder, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith("(3, 10)")


@pytest.mark.slow
def test_one_format_twice_replaces_the_first_and_is_two_looks(study: Ledger, storage: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    for looks in (1, 2):
        options = ["--pick", "knee", "--formats", "safetensors", "--storage", str(storage)]
        assert main(["demo", "--out", str(out), *options]) == 0
        assert verify(out)["networks"][0]["test_scores"]["looks_in_study"] == looks
        assert sorted(p.name for p in (out / "trial-0000").iterdir()) == [
            "README.md",
            "model.json",
            "model.safetensors",
        ]
        assert len(openings(storage / "demo" / "test_openings.jsonl")) == looks
    assert "onnx" not in (out / "trial-0000" / "README.md").read_text().lower().replace("nor onnx files", "")


@pytest.mark.parametrize("option", ["--tracking-uri={}", "{}"])
def test_a_password_does_not_travel_with_the_export(option: str) -> None:
    line = command_line(["--tracking-uri", option.format("https://ann:s3/cr:et@host:5000/x"), "a@b"])
    assert "https://ann:***@host:5000/x" in line and "cr" not in line and line.endswith(" a@b")
    assert command_line(["--storage", "s3://bucket/a"]) == "--storage s3://bucket/a"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pick", "best"], "choose all, knee, or best:"),
        (["--pick", "best:beauty"], "choose all, knee, or best:"),
        (["--formats", "onnx,pickle"], "pickle; choose from safetensors"),
        (["--formats", ","], "none; choose from safetensors"),
        (["--register", "a/b"], "use letters"),
        (["--register", "net", "--formats", "safetensors"], "add onnx"),
    ],
)
def test_a_mistyped_option_is_refused_before_anything_is_read(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["demo", "--out", str(tmp_path / "out"), "--storage", str(tmp_path / "nowhere"), *options]
    assert run_command(main, command) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
