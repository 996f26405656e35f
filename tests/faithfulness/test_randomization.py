"""The randomisation check, and maps against the truth that the embedded images have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from study.config import DataConfig, EvaluationConfig, TrialConfig
from study.data import Dataset, open_dataset
from study.data.labelled import LabelledImages
from study.faithfulness import evaluate_faithfulness
from study.faithfulness.randomization import cascade, rank_correlation, similarity_after_randomization
from study.faithfulness.stand_ins import centre_maps, random_maps
from study.metrics import CENTRE_MAPS, RANDOM_MAPS
from study.networks import build
from study.saliency import saliency_maps
from study.training.loop import make_optimizer, train_epoch


def test_rank_correlation_is_spearmans_with_ties() -> None:
    a = torch.tensor([[[1.0, 2], [2, 5]], [[3, 3], [3, 3]]])
    b = torch.tensor([[[0.0, 7], [7, 1]], [[1, 2], [3, 4]]])
    found = rank_correlation(a, b)
    assert found[0].item() == pytest.approx(stats.spearmanr(a[0].flatten(), b[0].flatten()).statistic)
    assert found[1].isnan()  # a constant map has no order


def test_the_cascade_goes_from_the_head_down_and_leaves_the_network() -> None:
    network = build("tiny", 10)
    before = [p.clone() for p in network.parameters()]
    copies = cascade(network, stages=3)
    assert copies[0][0] == "head"
    changed = [[not torch.equal(p, b) for p, b in zip(c.parameters(), before, strict=True)] for _, c in copies]
    assert sum(changed[0]) == 2  # weight and bias of the head
    assert all(sum(a) < sum(b) for a, b in itertools.pairwise(changed))
    matrices = [p.ndim > 1 for p in before]
    assert all(c for c, m in zip(changed[-1], matrices, strict=True) if m)
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


def test_maps_that_ignore_the_network_stay_the_same() -> None:
    network, x = build("tiny", 10).eval(), torch.randn(4, 3, 32, 32)
    fixed = torch.rand(4, 8, 8)

    def maps_of(of: nn.Module) -> dict[str, torch.Tensor]:
        return {**saliency_maps(of, x, torch.tensor([1, 2, 3, 4]), ["layer_cam"]).maps, "edge": fixed}

    names, found = similarity_after_randomization(network, maps_of, stages=2)
    assert len(names) == len(found["edge"]) == 3
    assert found["edge"] == pytest.approx([1, 1, 1])
    assert found["layer_cam"][-1] < 0.9


def trained(dataset: Dataset, seed: int) -> nn.Module:
    config = TrialConfig("tiny", 10, 0.1, batch_size=32, seed=seed, warmup_epochs=0.5)
    torch.manual_seed(seed)
    network = build("tiny", dataset.n_classes)
    optimizer = make_optimizer(network, config)
    images = LabelledImages.of(dataset, dataset.train)
    for epoch in range(config.epochs):
        train_epoch(network, optimizer, images, config, epoch)
    return network


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(5))
def test_a_trained_networks_maps_are_on_the_object(seed: int) -> None:
    """Objects sit at random places, so that neither chance nor the middle of the image finds them."""
    dataset = open_dataset(DataConfig(source="shapes", train_images=1500, validation_images=200))
    network = trained(dataset, seed)
    images = LabelledImages.of(dataset, dataset.validation, with_masks=True)
    assert images.masks_NHW is not None
    n = len(images)
    baselines = {RANDOM_MAPS: random_maps(n, seed), CENTRE_MAPS: centre_maps(n)}

    def energy(of: nn.Module) -> dict[str, float]:
        config = EvaluationConfig(methods=("grad_cam",), images=None, masking_images=2)
        report = evaluate_faithfulness(of, images, config, temperature=1.0, stand_ins=baselines)
        return {m: float(np.nanmean(report.per_image[f"{m}/energy_in_mask"])) for m in report.methods}

    found = energy(network)
    assert found["grad_cam"] > 1.2 * max(found[RANDOM_MAPS], found[CENTRE_MAPS])
    (_, nothing_learned) = cascade(network, stages=1, seed=seed)[-1]
    lost = energy(nothing_learned)
    assert lost["grad_cam"] < 1.2 * max(lost[RANDOM_MAPS], lost[CENTRE_MAPS])
