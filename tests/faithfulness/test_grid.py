"""The common grid, shifts and partners: by hand, and the properties that the controls rest on."""

from __future__ import annotations

import pytest
import torch

from study.faithfulness import grid


def test_a_multiple_of_the_grid_is_pooled_and_a_coarser_map_fills_its_cells() -> None:
    fine = torch.rand(3, 8, 8)
    torch.testing.assert_close(grid.to_grid(fine), torch.nn.functional.avg_pool2d(fine[:, None], 2)[:, 0])
    coarse = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert grid.to_grid(coarse)[0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_seven_places_are_divided_by_area() -> None:
    """A cell of 7/4 places: the first holds place 0 and three quarters of place 1."""
    line = torch.zeros(1, 7, 7)
    line[0, :, 1] = 7.0  # the same in every row
    assert grid.to_grid(line)[0, 0].tolist() == pytest.approx([7 * 0.75 / 1.75, 7 * 0.25 / 1.75, 0, 0])


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (5, 6), (7, 7), (8, 8), (32, 32)])
def test_the_mean_stays(size: tuple[int, int]) -> None:
    maps = torch.rand(2, *size, dtype=torch.float64)
    torch.testing.assert_close(grid.to_grid(maps).mean((1, 2)), maps.mean((1, 2)))


def test_a_shift_moves_every_cell_and_smooths_nothing() -> None:
    maps = torch.rand(200, 4, 4)
    offsets = grid.shift_offsets(200, seed=0)[:, 0]
    moved = grid.shifted(maps, offsets)
    assert torch.equal(moved.flatten(1).sort(1).values, maps.flatten(1).sort(1).values)
    assert (moved != maps).flatten(1).any(1).all(), "no image keeps its map in place"
    down, right = divmod(int(offsets[0]), 4)
    assert torch.equal(moved[0], maps[0].roll((down, right), (0, 1)))
    assert set(offsets.tolist()) == set(range(1, 16))


def test_what_is_drawn_for_an_image_depends_on_its_number_alone() -> None:
    from study.faithfulness.deletion import random_halves

    assert torch.equal(grid.shift_offsets(500, 3, 2)[:20], grid.shift_offsets(20, 3, 2))
    assert not torch.equal(grid.shift_offsets(20, 3), grid.shift_offsets(20, 4))
    assert torch.equal(random_halves(300, 3)[:20], random_halves(20, 3))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_partners_are_a_derangement(n: int) -> None:
    for k in range(1, n):
        partner = grid.partners(n, k)
        assert sorted(partner.tolist()) == list(range(n)) and (partner != torch.arange(n)).all()
