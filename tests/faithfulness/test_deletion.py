"""Agreements of maps with what the logit says when cells are deleted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from study.faithfulness import deletion


def test_ranks_and_correlations_are_scipys() -> None:
    torch.manual_seed(0)
    maps, drops = torch.rand(20, 16).round(decimals=1), torch.randn(20, 16)  # rounded: ties
    found = deletion.rank_agreement(maps, drops)
    for i in range(20):
        assert found[i] == pytest.approx(100 * stats.spearmanr(maps[i].numpy(), drops[i].numpy()).statistic)
    kept, logits = deletion.random_halves(20, seed=0), torch.randn(20, 16)
    found = deletion.subset_agreement(maps, kept, logits)
    for i in range(20):
        left = kept[i].numpy() @ maps[i].numpy()
        assert found[i] == pytest.approx(100 * np.corrcoef(left, logits[i].numpy())[0, 1], abs=1e-4)


def test_no_order_is_no_agreement() -> None:
    flat, any_order = torch.ones(1, 16), torch.rand(1, 16)
    assert deletion.rank_agreement(flat, any_order) == 0 and deletion.rank_agreement(any_order, flat) == 0


def test_halves_are_halves_with_their_complements() -> None:
    kept = deletion.random_halves(50, seed=1)
    assert kept.shape == (50, 16, 16) and (kept.sum(2) == 8).all()
    assert torch.equal(kept[:, ::2], ~kept[:, 1::2])


def test_a_common_shift_of_all_logits_decides_nothing() -> None:
    logits, classes = torch.randn(4, 7), torch.tensor([0, 3, 6, 2])
    common = torch.randn(4, 1)
    torch.testing.assert_close(
        deletion.centred_logits(logits + common, classes), deletion.centred_logits(logits, classes)
    )


def test_masked_logits_delete_the_cells_they_name() -> None:
    """A network that sums the upper left quarter: deleting that cell alone takes its logit away."""
    x = torch.ones(2, 3, 32, 32)

    def forward(images: torch.Tensor) -> torch.Tensor:
        corner = images[:, :, :8, :8].sum((1, 2, 3))
        return torch.stack([corner, torch.zeros_like(corner)], 1)

    kept = deletion.single_deletions().expand(2, -1, -1)
    found = deletion.masked_logits(forward, x, torch.zeros_like(x), kept, torch.zeros(2, dtype=torch.int64))
    assert found[:, 0].tolist() == [0, 0] and (found[:, 1:] == 96).all()  # centred: 192 less the mean of 192 and 0


def test_the_reference_finds_a_linear_network() -> None:
    torch.manual_seed(0)
    effect = torch.randn(5, 16, dtype=torch.float64)
    whole, single = torch.ones(5, 1, 16, dtype=torch.bool), deletion.single_deletions().expand(5, -1, -1)
    kept = torch.cat([whole, single, deletion.random_halves(5, 0)], 1)
    logits = (kept.double() @ effect[:, :, None]).squeeze(2) + 3
    torch.testing.assert_close(deletion.reference_map(kept, logits), effect.relu())
