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


def test_linear_with_a_warm_up_is_a_triangle() -> None:
    config = dataclasses.replace(BASE, schedule="linear", epochs=10, warmup_epochs=2)
    rates = [learning_rate(config, step, 10) for step in range(100)]
    assert rates[:20] == pytest.approx([0.1 * (step + 1) / 20 for step in range(20)])
    assert rates[20:] == pytest.approx([0.1 * (100 - step) / 80 for step in range(20, 100)])
    straight = dataclasses.replace(config, warmup_epochs=0)
    assert learning_rate(straight, 0, 10) == 0.1


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
    weights = [regularizer_weight(config, step, 5) for step in range(interval * steps)]
    assert sum(weights) == pytest.approx(0.5 * interval * steps)
    assert sum(w > 0 for w in weights) == steps and weights[0] > 0


def test_lambda_rises_to_its_value() -> None:
    config = dataclasses.replace(BASE, reg_weight=0.5, reg_error="mse", reg_warmup_epochs=1.5)
    weights = [regularizer_weight(config, step, 4) for step in range(10)]
    assert weights == pytest.approx([0.5 * (step + 1) / 6 for step in range(6)] + [0.5] * 4)
    lazy = dataclasses.replace(config, reg_interval=2)
    assert [regularizer_weight(lazy, step, 4) for step in range(10)] == [
        2 * w if i % 2 == 0 else 0 for i, w in enumerate(weights)
    ]
    at_once = dataclasses.replace(config, reg_warmup_epochs=0)
    assert {regularizer_weight(at_once, step, 4) for step in range(10)} == {0.5}


def test_what_belongs_to_the_regularizer_means_nothing_without_a_weight() -> None:
    assert dataclasses.replace(BASE, reg_interval=4, reg_warmup_epochs=2) == BASE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reg_warmup_epochs", -1), ("norm_lr_multiple", 0), ("norm_lr_multiple", "8"), ("initialization", "zero"),
        ("crop_mode", "mirror"), ("schedule", "triangle"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name}: .*{value}"):
        dataclasses.replace(BASE, reg_weight=1.0, **{"reg_error": "mse", name: value})


@pytest.mark.parametrize("interval", [0, -1, 1.5, True])
def test_an_interval_is_a_count(interval: object) -> None:
    with pytest.raises(InputError, match="reg_interval: "):
        dataclasses.replace(BASE, reg_weight=1.0, reg_error="cosine", reg_interval=interval)
