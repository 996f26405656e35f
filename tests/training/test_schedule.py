from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.config import SCHEDULES, TrialConfig
from study.errors import InputError
from study.training.schedule import learning_rate, regularizer_weight, steps_per_epoch

BASE = TrialConfig(network="tiny", epochs=200, lr=0.1, schedule="step", warmup_epochs=1)


def test_published_recipe() -> None:
    """0.1 x 0.2 at epochs 60, 120, 160 of 200 with one warm-up epoch."""
    spe = 391
    at = {epoch: learning_rate(BASE, epoch * spe, spe) for epoch in (1, 59, 60, 119, 120, 159, 160, 199)}
    expected = {1: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 159: 0.004, 160: 0.0008, 199: 0.0008}
    assert at == pytest.approx(expected)
    assert learning_rate(BASE, 60 * spe - 1, spe) == pytest.approx(0.1)
    assert learning_rate(BASE, 0, spe) == pytest.approx(0.1 / spe)
    assert learning_rate(BASE, spe - 1, spe) == pytest.approx(0.1)


def test_cosine_starts_at_lr_and_ends_near_zero() -> None:
    config = dataclasses.replace(BASE, schedule="cosine", epochs=11, warmup_epochs=1)
    assert learning_rate(config, 10, 10) == pytest.approx(0.1)
    assert learning_rate(config, 60, 10) == pytest.approx(0.05)
    assert 0 < learning_rate(config, 109, 10) < 1e-4


@given(
    schedule=st.sampled_from(SCHEDULES),
    epochs=st.integers(1, 30),
    warmup=st.floats(0, 40),
    spe=st.integers(1, 20),
    data=st.data(),
)
def test_rate_is_positive_bounded_and_falls_after_warmup(
    schedule: str, epochs: int, warmup: float, spe: int, data: st.DataObject
) -> None:
    config = dataclasses.replace(BASE, schedule=schedule, epochs=epochs, warmup_epochs=warmup)
    step = data.draw(st.integers(0, epochs * spe - 1))
    rate = learning_rate(config, step, spe)
    assert 0 < rate <= 0.1 + 1e-12
    if warmup * spe <= step < epochs * spe - 1:
        assert learning_rate(config, step + 1, spe) <= rate + 1e-12


@pytest.mark.parametrize(("n", "batch", "steps"), [(10, 5, 2), (11, 5, 2), (12, 5, 3), (1, 5, 1), (3, 1, 3), (3, 9, 1)])
def test_a_last_batch_of_one_image_is_dropped(n: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(n, batch) == steps


@given(interval=st.integers(1, 9), steps=st.integers(1, 12))
def test_lazy_weights_sum_to_those_of_every_step(interval: int, steps: int) -> None:
    config = dataclasses.replace(BASE, reg_weight=0.5, reg_error="cosine", reg_interval=interval)
    weights = [regularizer_weight(config, step) for step in range(interval * steps)]
    assert sum(weights) == pytest.approx(0.5 * interval * steps)
    assert sum(w > 0 for w in weights) == steps and weights[0] > 0


def test_an_interval_means_nothing_without_a_weight() -> None:
    assert dataclasses.replace(BASE, reg_interval=4) == BASE


@pytest.mark.parametrize("interval", [0, -1, 1.5, True])
def test_an_interval_is_a_count(interval: object) -> None:
    with pytest.raises(InputError, match="reg_interval: "):
        dataclasses.replace(BASE, reg_weight=1.0, reg_error="cosine", reg_interval=interval)
