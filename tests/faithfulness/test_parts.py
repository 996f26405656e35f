"""The five parts, worked by hand on small images; the edge cases that have a defined value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from study.faithfulness import metrics
from study.faithfulness.masking import blur_line, gaussian_blur, ranks, step_counts, undefined_maps, upsampled_masks
from study.faithfulness.protocols import PROTOCOLS
from study.metrics import PROTOCOLS as NAMES
from study.metrics import protocol_identity


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_drop_increase_and_gain_by_hand() -> None:
    p, o = t(0.8, 0.5, 0.25, 0.5), t(0.6, 0.5, 0.5, 0.75)
    assert metrics.average_drop(p, o).tolist() == pytest.approx([25, 0, 0, 0])
    assert metrics.average_increase(p, 1 - p, o, 1 - o).tolist() == [0, 0, 100, 100]  # a tie is no increase
    assert metrics.average_gain(1 - p, 1 - o).tolist() == pytest.approx([0, 0, 100 / 3, 50])


def test_area_by_hand() -> None:
    # Probabilities at 0, 1/4, ..., 1 of the pixels: trapezes of width 1/4.
    curve = t(0.1, 0.3, 0.5, 0.7, 0.9)[None]
    assert metrics.area(curve).item() == pytest.approx(50)
    assert metrics.area(t(0.0, 1.0, 1.0)[None]).item() == pytest.approx(75)


def test_certainty_and_impossibility_are_defined() -> None:
    zero, one = t(0.0), t(1.0)
    assert metrics.average_drop(zero, t(0.5)).item() == 0
    assert metrics.average_gain(zero, zero).item() == 0  # q = 0: p is 1, nothing can be gained
    assert metrics.average_increase(one, zero, one, zero).item() == 0


def test_float32_near_certainty_keeps_its_digits() -> None:
    logits = torch.tensor([[30.0, 0.0, 0.0], [18.0, 1.0, 0.0]])
    masked = torch.tensor([[31.0, 0.0, 0.0], [19.0, 1.0, 0.0]])
    y = torch.zeros(2, dtype=torch.int64)
    p, q = metrics.probabilities(logits, y)
    o, q_o = metrics.probabilities(masked, y)
    assert (p == o).all(), "in float32 the probabilities cannot be told apart"
    exact = [100 * (1 - math.exp(-1)), 100 * (1 - math.exp(-1))]  # q falls by e where the logit rises by 1
    assert metrics.average_gain(q, q_o).tolist() == pytest.approx(exact, rel=1e-5)
    assert metrics.average_increase(p, q, o, q_o).tolist() == [100, 100]


def test_combined_is_the_mean_of_five() -> None:
    parts = {"average_drop": 50.0, "average_increase": 15.0, "average_gain": 5.0, "insertion": 55.0, "deletion": 35.0}
    assert metrics.combined({k: t(v) for k, v in parts.items()}).item() == pytest.approx(38)


def test_maps_that_point_nowhere_are_counted_and_show_nothing() -> None:
    maps = torch.zeros(5, 2, 2)
    maps[1] = 3.0
    maps[2, 0, 0] = math.nan
    maps[3, 0, 0] = math.inf
    maps[4, 1, 1] = 2.0
    assert undefined_maps(maps).tolist() == [True, True, True, True, False]
    masks = upsampled_masks(maps, (4, 4))
    assert (masks[:4] == 0).all() and masks[4].max() == 1 and masks[4].min() == 0


def test_half_pixel_upsampling_by_hand() -> None:
    mask = upsampled_masks(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), (4, 4))[0, 0]
    assert mask[0].tolist() == pytest.approx([0, 0.25, 0.75, 1])


def test_pixels_go_by_salience_and_ties_in_reading_order() -> None:
    mask = torch.tensor([[[[0.5, 1.0], [0.5, 0.0]]]])
    assert ranks(mask)[0, 0].tolist() == [[1, 0], [2, 3]]
    assert ranks(torch.zeros(1, 1, 2, 2)).flatten().tolist() == [0, 1, 2, 3]


def smoothed_impulse(kernel: int, sigma: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    impulse = np.zeros((kernel, kernel))
    impulse[kernel // 2, kernel // 2] = 1
    return ndimage.gaussian_filter(impulse, sigma)


@pytest.mark.parametrize(("kernel", "sigma"), [(5, 5.0), (11, 5.0), (3, 0.5), (7, 2.3), (31, 1.0), (1, 5.0)])
def test_the_blurs_kernel_is_scipys_smoothed_impulse(kernel: int, sigma: float) -> None:
    line = blur_line(kernel, sigma).numpy()
    np.testing.assert_allclose(np.outer(line, line), smoothed_impulse(kernel, sigma), rtol=0, atol=1e-12)


def test_the_papers_kernel_is_nearly_a_box_and_rises_is_not() -> None:
    paper, rise = (blur_line(PROTOCOLS[name].blur_kernel, PROTOCOLS[name].blur_sigma) for name in ("paper", "rise"))
    assert (paper - 1 / 5).abs().max() < 1e-5
    assert rise.max() / rise.min() > 1.05


@pytest.mark.parametrize("kernel", [5, 11])
def test_blur_convolves_over_zeros(kernel: int) -> None:
    constant = torch.full((1, 3, 32, 32), 0.7)
    blurred, half = gaussian_blur(constant, kernel, 5.0), kernel // 2
    inner = slice(half, 32 - half)
    torch.testing.assert_close(blurred[..., inner, inner], constant[..., inner, inner])
    assert (blurred[..., 0, :] < 0.45).all() and (blurred[..., -1] < 0.45).all()  # about half of it is zeros
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    weights = torch.from_numpy(smoothed_impulse(kernel, 5.0)).expand(3, 1, -1, -1)
    torch.testing.assert_close(gaussian_blur(x, kernel, 5.0), F.conv2d(x, weights, padding=half, groups=3))


def test_protocols_have_their_names_and_steps() -> None:
    assert tuple(PROTOCOLS) == NAMES
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name and protocol.identity == protocol_identity(name)
    assert step_counts(32 * 32, PROTOCOLS["paper"].step_pixels(32)) == [256, 512, 768]  # with both ends: four steps
