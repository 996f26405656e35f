"""What a training would have shown at any point of the space, from the table of recorded curves.

A curve is one vector: accuracy, faithfulness and the logarithm of its standard error after each scored epoch. Vectors
are standardised and reduced to principal components; a Gaussian process (Matern 5/2, one length per parameter, white
noise fitted) per component carries them to other points. Its mean is taken as the *truth* by which searches are judged.
What a search is shown is the truth and noise: a random mixture of the recorded differences between two seeds at one
point, in units of the point's own standard errors, fixed by point and seed. At a recorded point with a recorded seed it
is shown the recorded curve itself. A point diverges if the nearest recorded one did.

Seconds are a typical epoch's of the recorded ones by batch size, with the regularizer and without.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from study.spec.space import Choice, FloatRange, Point, ordered
from study.spec.study_spec import StudySpec

SHOWN = ("accuracy", "faithfulness")
_VARIANCE = 0.95  # of the standardised curves that the kept components explain
_LEAST_ERROR = (
    0.3  # in points, as the scores: a constant network's standard error is 0, its differences between seeds are not
)


@dataclass(frozen=True)
class Shown:
    """One training as a search sees it: values and standard errors after each of ``epochs``.

    ``values`` and ``errors``: (epochs, 2), accuracy (%) and faithfulness (points). ``diverges_after``: the epoch
    in which the loss is no longer finite, or None.
    """

    epochs: tuple[int, ...]
    values: np.ndarray
    errors: np.ndarray
    diverges_after: int | None


class Surrogate:
    """Fitted to a table of curves (``benchmarks/data/curves.parquet``) over ``spec``'s space."""

    def __init__(self, table: pd.DataFrame, spec: StudySpec) -> None:
        self.spec = spec
        self._names = ordered(spec.space)
        curves = [c for _, c in table.groupby("curve")]
        self.points: list[Point] = [self._point(c.iloc[0]) for c in curves]
        self.seeds = [int(c.iloc[0]["seed"]) for c in curves]
        last = int(table["epoch"].max())
        scored = table.loc[table["faithfulness"].notna(), "epoch"]
        self.epochs = tuple(int(e) for e in sorted(scored.unique()))
        self.images = int(spec.data_config.validation_images or 500)
        ends = [None if c["epoch"].max() == last and c["accuracy"].notna().all() else c["epoch"].max() for c in curves]
        self._ends = [None if e is None else int(e) for e in ends]
        whole = [i for i, e in enumerate(self._ends) if e is None]
        self._features = np.array([self._encode(p) for p in self.points])
        self._whole = whole
        self._recorded = np.array([self._vector(curves[i]) for i in whole])
        self._fit()
        self._differences = self._seed_differences()
        self._costs = _costs(table)
        self._known = {(_key(self.points[i]), self.seeds[i]): row for row, i in enumerate(whole)}
        self._cache: dict[str, np.ndarray] = {}

    @classmethod
    def load(cls, path: Path, spec: StudySpec) -> Surrogate:
        return cls(pd.read_parquet(path), spec)

    def truth(self, point: Point) -> np.ndarray:
        """(2,): accuracy and faithfulness at the end, without noise. Accuracy of a diverged training is 0."""
        if self._diverges(point) is not None:
            return np.zeros(2)
        values, _ = self._split(self._predict(point))
        return values[-1]

    def shown(self, point: Point, seed: int) -> Shown:
        """What training ``point`` with ``seed`` reports."""
        row = self._known.get((_key(point), seed))
        if row is not None:
            values, errors = self._split(self._recorded[row])
            return Shown(self.epochs, values, errors, None)
        values, errors = self._split(self._predict(point))
        digest = hashlib.sha256(f"{_key(point)} {seed}".encode()).digest()
        generator = np.random.default_rng(list(digest[:16]))
        n = len(self._differences)
        mixture = generator.standard_normal(n) / math.sqrt(2 * n)
        noise = np.tensordot(mixture, self._differences, 1) * np.maximum(errors, _LEAST_ERROR)
        values = values + noise
        values[:, 0] = values[:, 0].clip(0, 100)
        return Shown(self.epochs, values, errors, self._diverges(point))

    def seconds(self, point: Point) -> tuple[float, float]:
        """Of an epoch with its accuracy, and of a faithfulness score."""
        return self._costs[(int(point.get("batch_size", 0)), float(point.get("reg_weight", 0)) > 0)]

    def typical_seconds(self) -> float:
        """An epoch's, over the whole table."""
        return float(np.median([epoch for epoch, _ in self._costs.values()]))

    @cached_property
    def left_out(self) -> dict[str, dict[str, float]]:
        """Errors at the last epoch when a curve is predicted from the others, hyperparameters kept.

        By metric: root mean square error, that of always predicting the mean, and Spearman's rank correlation.
        """
        components = np.empty_like(self._components)
        for k, gp in enumerate(self._gps):
            inverse = np.linalg.inv(gp.L_ @ gp.L_.T)
            residual = (inverse @ gp.y_train_) / np.diag(inverse)
            components[:, k] = self._components[:, k] - residual * gp._y_train_std
        predicted = (components @ self._axes) * self._std + self._mean
        found = {}
        for j, name in enumerate(SHOWN):
            column = (j + 1) * len(self.epochs) - 1
            p, r = predicted[:, column], self._recorded[:, column]
            ranks = np.corrcoef(pd.Series(p).rank(), pd.Series(r).rank())[0, 1]
            found[name] = {"error": _rms(p - r), "of_mean": float(r.std()), "rank_correlation": float(ranks)}
        return found

    @property
    def settled(self) -> dict[str, list[float]]:
        """Spearman's rank correlation of the recorded values after each of :attr:`epochs` with those at the end."""
        n = len(self.epochs)
        found = {}
        for j, name in enumerate(SHOWN):
            columns = pd.DataFrame(self._recorded[:, j * n : (j + 1) * n]).rank()
            found[name] = [float(columns[i].corr(columns[n - 1])) for i in range(n)]
        return found

    @property
    def between_seeds(self) -> dict[str, float]:
        """Root mean square difference of the last values of two seeds, over sqrt 2: one training's own noise."""
        pairs = self._pairs()
        found = {}
        for j, name in enumerate(SHOWN):
            column = (j + 1) * len(self.epochs) - 1
            both = [self._recorded[a, column] - self._recorded[b, column] for a, b in pairs]
            found[name] = _rms(np.array(both)) / math.sqrt(2)
        return found

    def _fit(self) -> None:
        self._mean = self._recorded.mean(axis=0)
        self._std = self._recorded.std(axis=0) + 1e-9
        standard = (self._recorded - self._mean) / self._std
        _, s, axes = np.linalg.svd(standard, full_matrices=False)
        k = int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), _VARIANCE)) + 1
        self._axes = axes[:k]
        self._components = standard @ self._axes.T
        x = self._features[self._whole]
        self._gps = []
        for column in self._components.T:
            kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(np.ones(x.shape[1]), (0.1, 30), nu=2.5)
            gp = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-3, 2)), normalize_y=True, random_state=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: a parameter without effect
                self._gps.append(gp.fit(x, column))

    def _predict(self, point: Point) -> np.ndarray:
        key = _key(point)
        if key not in self._cache:
            x = self._encode(point)[None]
            components = np.array([gp.predict(x)[0] for gp in self._gps])
            self._cache[key] = (components @ self._axes) * self._std + self._mean
        return self._cache[key]

    def _split(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        accuracy, faithfulness, log_error = vector.reshape(3, -1)
        accuracy = accuracy.clip(0, 100)
        share = accuracy / 100
        binomial = 100 * np.sqrt(share * (1 - share) / self.images)
        values, errors = np.stack([accuracy, faithfulness], 1), np.stack([binomial, np.exp(log_error)], 1)
        return values, errors

    def _vector(self, curve: pd.DataFrame) -> np.ndarray:
        rows = curve.set_index("epoch").loc[list(self.epochs)]
        error = np.log(np.maximum(rows["faithfulness_error"], 0.01))
        return np.concatenate([rows["accuracy"], rows["faithfulness"], error]).astype(float)

    def _point(self, row: pd.Series) -> Point:
        point: Point = {}
        for name in self._names:
            if self.spec.active(name, point):
                value = row[name]
                choice = self.spec.space[name]
                point[name] = next(c for c in choice.choice if c == value) if isinstance(choice, Choice) else value
        return point

    def _encode(self, point: Mapping[str, Any]) -> np.ndarray:
        """Ranges to [0, 1], 0 beside a range a little below it; words to one indicator each, all 0 where inactive."""
        features: list[float] = []
        for name in self._names:
            parameter = self.spec.space[name]
            value = point.get(name)
            if isinstance(parameter, Choice):
                if all(isinstance(c, (int, float)) for c in parameter.choice):
                    features.append(sorted(parameter.choice).index(value) / (len(parameter.choice) - 1))  # type: ignore[type-var, arg-type]
                else:
                    features += [float(value == c) for c in parameter.choice]
                continue
            low, high = parameter.bounds
            if isinstance(parameter, FloatRange) and parameter.zero and value == 0:
                features.append(-0.15)
            elif parameter.log:
                features.append(math.log(value / low) / math.log(high / low))  # type: ignore[operator]
            else:
                features.append((value - low) / (high - low))  # type: ignore[operator]
        return np.array(features)

    def _diverges(self, point: Point) -> int | None:
        if all(e is None for e in self._ends):
            return None
        distances = np.linalg.norm(self._features - self._encode(point), axis=1)
        return self._ends[int(distances.argmin())]

    def _pairs(self) -> list[tuple[int, int]]:
        """Rows of ``_recorded`` that are the same point with different seeds."""
        keys = [_key(self.points[i]) for i in self._whole]
        return [(keys.index(k), row) for row, k in enumerate(keys) if keys.index(k) < row]

    def _seed_differences(self) -> np.ndarray:
        """(pairs, epochs, 2), in standard errors."""
        found = []
        for a, b in self._pairs():
            (first, first_errors), (second, second_errors) = map(self._split, (self._recorded[a], self._recorded[b]))
            error = np.sqrt(
                (np.maximum(first_errors, _LEAST_ERROR) ** 2 + np.maximum(second_errors, _LEAST_ERROR) ** 2) / 2
            )
            found.append((first - second) / error)
        # Without repeated points, independent noise of one standard error.
        return np.array(found) if found else math.sqrt(2) * np.ones((1, len(self.epochs), 2))


def _costs(table: pd.DataFrame) -> dict[tuple[int, bool], tuple[float, float]]:
    """By batch size and regularized or not: seconds of an epoch with its accuracy, and of a faithfulness score.

    An epoch's are a factor per batch size times one for the regularizer, fitted to their logarithms.
    """
    scored = table["faithfulness"].notna()
    accuracy = float(table.loc[~scored, "evaluation_seconds"].median())
    score = max(0.0, float(table.loc[scored, "evaluation_seconds"].median()) - accuracy)
    rows = table[table["epoch_seconds"] > 0]
    sizes = sorted(int(b) for b in rows["batch_size"].unique())
    columns = [rows["batch_size"] == b for b in sizes] + [rows["reg_weight"] > 0]
    design = np.stack([c.to_numpy(dtype=float) for c in columns], 1)
    factors = np.linalg.lstsq(design, np.log(rows["epoch_seconds"].to_numpy(dtype=float)), rcond=None)[0]
    return {
        (b, regularized): (float(np.exp(factors[i] + regularized * factors[-1])) + accuracy, score)
        for i, b in enumerate(sizes)
        for regularized in (False, True)
    }


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x)))) if len(x) else math.nan


def _key(point: Mapping[str, Any]) -> str:
    return json.dumps({k: float(v) if isinstance(v, (int, float)) else v for k, v in point.items()}, sort_keys=True)
