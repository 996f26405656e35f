"""Lambda's effect: found where it was put in, not invented where there is none, and never claimed from too little."""

from __future__ import annotations

import numpy as np
import pytest
from made_studies import invented_table

from analysis.statistics.effect import Effect, lambda_effects
from analysis.statistics.front import eligible


def invented(n: int, effect: float, noise: float, seeds: int = 1) -> list[Effect]:
    """Large lambda goes with the good learning rates: only an adjusted comparison is right."""
    rng = np.random.default_rng(5)
    runs = []
    for trial in range(n):
        weight = 0.0 if trial % 3 == 0 else float(10 ** rng.uniform(-3, 1))
        network = ["tiny", "small"][trial % 2]
        lr = float(10 ** (rng.uniform(-2, -1) if weight < 0.1 else rng.uniform(-1.3, -0.7)))
        known = 60 + 10 * (network == "small") - 20 * (np.log10(lr) + 0.7) ** 2
        for seed in range(seeds):
            value = float(known + effect * (weight > 0.1) + noise * rng.standard_normal())
            scores = {"val/accuracy": value, "val/faithfulness": float(rng.standard_normal())}
            runs.append((seed, {"reg_weight": weight, "lr": lr, "network": network, "seed": seed}, scores))
    return effects(runs)


def effects(runs: list) -> list[Effect]:
    study = invented_table(runs)
    return lambda_effects(study, eligible(study))


def test_an_effect_is_found_with_the_rest_held_level() -> None:
    accuracy, faithfulness = invented(60, -4.0, 0.3)
    assert accuracy.reference == "λ = 0" and set(accuracy.adjusted) == {"lr", "network"}
    large = [e for e in accuracy.levels if e.low > 0.1]
    small = [e for e in accuracy.levels if e.high < 0.1]
    assert large and small
    for level in large:
        assert level.interval[0] < -4 < level.interval[1] < 0
    for level in small:
        assert level.interval[0] < 0 < level.interval[1]
    assert "lowers accuracy by" in accuracy.sentence and "worse" in accuracy.sentence
    assert "cannot tell" in faithfulness.sentence


def test_seeds_are_not_counted_as_configurations() -> None:
    accuracy = invented(20, 0.0, 0.3, seeds=3)[0]
    assert accuracy.configurations == 20


def test_chance_is_rarely_called_an_effect() -> None:
    """The interval of a level covers 0 at its promised rate where there is nothing but noise."""
    from analysis.statistics.effect import _least_squares

    rng = np.random.default_rng(0)
    from scipy import stats

    covered = 0
    for _ in range(400):
        x = np.column_stack([np.ones(12), np.arange(12) < 5, rng.standard_normal(12)])
        estimate, error = _least_squares(x, rng.standard_normal(12))
        covered += abs(estimate[1]) < stats.t.ppf(0.975, 9) * error[1]
    assert 0.92 < covered / 400 <= 1


def test_least_squares_by_hand() -> None:
    from analysis.statistics.effect import _least_squares

    x = np.column_stack([np.ones(4), [0, 0, 1, 1]])
    estimate, error = _least_squares(x, np.array([1.0, 3.0, 6.0, 8.0]))
    assert estimate == pytest.approx([2, 5])
    assert error[1] == pytest.approx(np.sqrt(4 * (1 / 0.5) ** 2 / 4))  # residuals 1, leverage 1/2, influence 1/2
    _, error = _least_squares(np.column_stack([np.ones(3), [0, 0, 1]]), np.array([1.0, 2.0, 9.0]))
    assert np.isinf(error[1])


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ([], "fewer than two levels"),
        ([0.0, 0.0, 0.0], "fewer than two levels"),
        ([0.0, 0.5, 0.5], "fewer than two configurations with λ = 0"),
        ([0.0, 0.0, 0.5, 0.5], "too few for"),
    ],
)
def test_too_little_is_said_to_be_so(weights: list[float], why: str) -> None:
    rows = [
        (0, {"reg_weight": w, "lr": 0.1 + i}, {"val/accuracy": float(i), "val/faithfulness": 1.0})
        for i, w in enumerate(weights)
    ]
    for effect in effects(rows):
        assert not effect.levels and why in effect.sentence and "cannot tell" in effect.sentence


def test_a_grid_keeps_its_levels() -> None:
    rows = [
        (0, {"reg_weight": w, "lr": lr}, {"val/accuracy": 10 * w + lr, "val/faithfulness": 1.0})
        for w in (0.0, 0.5, 2.0)
        for lr in (0.1, 0.2, 0.4, 0.8)
    ]
    accuracy, faithfulness = effects(rows)
    assert [(e.low, e.high, e.configurations) for e in accuracy.levels] == [(0.5, 0.5, 4), (2.0, 2.0, 4)]
    assert [e.estimate for e in accuracy.levels] == pytest.approx([5, 20])
    assert [e.estimate for e in faithfulness.levels] == pytest.approx([0, 0])
