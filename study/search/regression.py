"""Gaussian process regression of one objective over encoded points, with a noise of its own for every kind of value.

Rasmussen & Williams, *Gaussian Processes for Machine Learning* (2006), chapters 2 and 5. Kernel: Matern 5/2 with a
length per feature. A prior on the lengths that grows with the number of features keeps them from being fitted to
chance while few values are known (Hvarfner et al., *Vanilla Bayesian Optimization Performs Great in High Dimensions*,
2024, eq. 4).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

FloatArray = np.ndarray
_ROOT5 = math.sqrt(5)
_LENGTH_SPREAD = math.sqrt(3)  # standard deviation of log length in the prior
_NOISE = (math.log(0.1), 1.5)  # mean and standard deviation of log noise variance, of standardised values
_STEPS = 25  # of the optimizer: a proposal stays in milliseconds


class Regression:
    """Fitted to ``x`` (n, features) in [0, 1] and ``y`` (n,); ``kinds`` (n,): integers, values of one kind are equally
    noisy. Deterministic: the same values give the same fit.
    """

    def __init__(self, x: FloatArray, y: FloatArray, kinds: FloatArray) -> None:
        self._mean, self._scale = float(y.mean()), float(y.std()) or 1.0
        self._squares = ((x[:, None, :] - x[None, :, :]) ** 2).reshape(-1, x.shape[1])  # (n * n, features)
        z = (y - self._mean) / self._scale
        _, self._kinds = np.unique(kinds, return_inverse=True)
        n_features, n_kinds = x.shape[1], int(self._kinds.max()) + 1
        self._length_mean = math.sqrt(2) + 0.5 * math.log(n_features)
        start = np.concatenate([np.full(n_features, math.log(0.5)), [0.0], np.full(n_kinds, _NOISE[0])])
        bounds = (
            [(math.log(0.05), math.log(50))] * n_features + [(-3.0, 3.0)] + [(math.log(1e-4), math.log(4))] * n_kinds
        )
        found = minimize(
            self.loss, start, args=(z,), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
        )
        self.log_parameters: FloatArray = found.x
        self._condition(x, z, np.exp(found.x[n_features + 1 :])[self._kinds])

    def loss(self, log_parameters: FloatArray, z: FloatArray) -> tuple[float, FloatArray]:
        """Negative log posterior of (log lengths, log signal variance, log noise variances), and its gradient."""
        n_features = self._squares.shape[1]
        lengths = np.exp(log_parameters[:n_features])
        signal, noise = math.exp(log_parameters[n_features]), np.exp(log_parameters[n_features + 1 :])
        r = np.sqrt(self._squares @ lengths**-2).reshape(len(z), len(z))
        decay = np.exp(-_ROOT5 * r)
        kernel = signal * (1 + _ROOT5 * r + 5 / 3 * r**2) * decay
        try:
            factor = cholesky(kernel + np.diag(noise[self._kinds] + 1e-8), lower=True)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(log_parameters)
        alpha = cho_solve((factor, True), z)
        inverse = cho_solve((factor, True), np.eye(len(z)))
        value = 0.5 * z @ alpha + np.log(np.diag(factor)).sum()
        weights = 0.5 * (inverse - np.outer(alpha, alpha))  # d value / d K
        by_length = weights * signal * (5 / 3) * (1 + _ROOT5 * r) * decay
        gradient = np.empty_like(log_parameters)
        gradient[:n_features] = (by_length.ravel() @ self._squares) * lengths**-2
        gradient[n_features] = (weights * kernel).sum()
        gradient[n_features + 1 :] = np.bincount(self._kinds, np.diag(weights), len(noise)) * noise
        away = (log_parameters[:n_features] - self._length_mean) / _LENGTH_SPREAD
        noisy = (log_parameters[n_features + 1 :] - _NOISE[0]) / _NOISE[1]
        value += 0.5 * (away @ away + noisy @ noisy + log_parameters[n_features] ** 2)
        gradient[:n_features] += away / _LENGTH_SPREAD
        gradient[n_features] += log_parameters[n_features]
        gradient[n_features + 1 :] += noisy / _NOISE[1]
        return float(value), gradient

    def _condition(self, x: FloatArray, z: FloatArray, noise: FloatArray) -> None:
        self._x, self._z, self._noise = x, z, noise
        self._factor = cholesky(self._kernel(x, x) + np.diag(noise + 1e-8), lower=True)
        self._alpha = cho_solve((self._factor, True), z)

    def _kernel(self, a: FloatArray, b: FloatArray) -> FloatArray:
        n_features = a.shape[1]
        lengths = np.exp(self.log_parameters[:n_features])
        squares = (((a / lengths)[:, None, :] - (b / lengths)[None, :, :]) ** 2).sum(axis=2)
        r = np.sqrt(squares)
        return math.exp(self.log_parameters[n_features]) * (1 + _ROOT5 * r + 5 / 3 * squares) * np.exp(-_ROOT5 * r)

    def suppose(self, x: FloatArray) -> None:
        """Take for granted, at ``x`` (m, features) where trials run, what is expected there.

        The mean stays and the variance falls: the next proposal goes elsewhere (Ginsbourger et al. 2010, "kriging
        believer").
        """
        if len(x):
            believed, _ = self.predict(x)
            z = np.concatenate([self._z, (believed - self._mean) / self._scale])
            noise = np.concatenate([self._noise, np.full(len(x), self._noise.min())])
            self._condition(np.concatenate([self._x, x]), z, noise)

    def predict(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation, without noise, at ``x`` (m, features): (m,) each, in units of ``y``."""
        across = self._kernel(self._x, x)
        mean = across.T @ self._alpha
        half = solve_triangular(self._factor, across, lower=True)
        n_features = self._x.shape[1]
        variance = math.exp(self.log_parameters[n_features]) - (half**2).sum(axis=0)
        return mean * self._scale + self._mean, np.sqrt(np.maximum(variance, 1e-12)) * self._scale
