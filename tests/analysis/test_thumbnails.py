"""Pictures of saliency: which images, whose maps, and what is said where a network cannot be had."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from made_studies import MakeStudy, scored
from PIL import Image

from analysis.load import load_study
from analysis.report.thumbnails import Gallery, make_gallery
from study import names
from study.config import DataConfig, EvaluationConfig, TrialConfig
from study.data import open_dataset
from study.data.augment import normalize
from study.faithfulness.gallery import overlaid
from study.networks import build
from study.training.checkpoint import load_model, save_model

CONFIG = TrialConfig(
    "tiny", 1, 0.1, data=DataConfig(train_images=20, validation_images=60),
    evaluation=EvaluationConfig(methods=("grad_cam", "xgrad_cam", "grad_cam_plus_plus")),
)  # fmt: skip


def saved(folder: Path) -> list[Path]:
    """A network with drawn weights, as a trial saves it."""
    torch.manual_seed(1)
    data = open_dataset(CONFIG.data)
    card = {
        "network": "tiny", "n_classes": data.n_classes, "classes": list(data.classes), "mean": list(data.mean),
        "std": list(data.std), "config": CONFIG.to_dict(), "data_fingerprint": data.fingerprint,
    }  # fmt: skip
    save_model(folder, build("tiny", data.n_classes), card)
    return [folder / names.MODEL_FILE, folder / names.MODEL_CONFIG_FILE]


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_maps_lie_over_the_first_images_of_six_classes(make_study: MakeStudy, tmp_path: Path) -> None:
    files = saved(tmp_path / "network")
    rows = [(names.COMPLETE, CONFIG.to_dict(), scored(1, 1), f) for f in (files, [])]
    ledger = make_study(rows)
    gallery = make_gallery(ledger, load_study(ledger), [0, 1], None)
    assert isinstance(gallery, Gallery)
    data = open_dataset(CONFIG.data).validation
    labels = np.asarray(data.labels)
    first = sorted(int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels))[:6]
    shown = np.concatenate([np.asarray(data.images)[i].transpose(1, 2, 0) for i in first], axis=1)
    assert np.array_equal(pixels(gallery.images), shown)
    strip = gallery.strips[0]
    assert list(strip.maps) == ["grad_cam", "grad_cam_plus_plus"]  # XGrad-CAM is the same map
    for uri in strip.maps.values():
        assert pixels(uri).shape == (32, 6 * 32, 3)
    assert not np.array_equal(*map(pixels, strip.maps.values()))
    network, card = load_model(files[0].parent)
    with torch.no_grad():
        logits = network(normalize(torch.as_tensor(np.asarray(data.images)[first]), card["mean"], card["std"]))
    assert [s.split()[0] for s in strip.says] == [card["classes"][k] for k in logits.argmax(1)]
    assert set(gallery.missing) == {1} and "cannot be had" in gallery.missing[1]


def test_without_a_single_network_it_says_why(make_study: MakeStudy) -> None:
    ledger = make_study([(names.COMPLETE, {}, scored(1, 1), [])])
    assert "cannot be had" in str(make_gallery(ledger, load_study(ledger), [0], None))


def test_other_images_are_refused_and_said(make_study: MakeStudy, tmp_path: Path) -> None:
    ledger = make_study([(names.COMPLETE, CONFIG.to_dict(), scored(1, 1), saved(tmp_path / "network"))])
    assert str(tmp_path / "none") in str(make_gallery(ledger, load_study(ledger), [0], str(tmp_path / "none")))


def test_a_map_is_bright_where_it_points() -> None:
    images = np.full((2, 3, 8, 8), 100, np.uint8)
    maps = torch.zeros(2, 8, 8)
    maps[0, 1, 2] = 1.0
    out = overlaid(images, maps)
    assert out.shape == (2, 8, 8, 3) and out.dtype == np.uint8
    assert (out[1] == 100).all()  # an undefined map leaves the image grey
    assert np.unravel_index(out[0].sum(-1).argmax(), (8, 8)) == (1, 2)
