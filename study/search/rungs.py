"""Which trials go on at a rung: successive halving over any number of objectives, decided without Ray.

Asynchronous successive halving (ASHA; Li et al., *A System for Massively Parallel Hyperparameter Tuning*, MLSys 2020)
in its stopping form: whoever reaches a rung is compared with all who reached it before, and goes on if it is among
the best 1/reduction of them. With several objectives "best" means: lower non-dominated rank first, then, among equals
in rank, the larger crowding distance over the rung's ranges (Deb et al., *NSGA-II*, 2002), as MO-ASHA (Schmucker et
al., *Multi-objective Asynchronous Successive Halving*, 2021) does with an epsilon-net.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from study.metrics import SIGNS, Direction
from study.search.front import dominates, ranks

FloatArray = np.ndarray


def standing(values: FloatArray, i: int, keys: FloatArray) -> int:
    """How many rows of ``values`` (n, objectives; larger is better, all finite) stand before row ``i``.

    Non-dominated rank, then crowding distance, then, among exact ties, the larger of ``keys`` (n,).
    """
    rank = ranks(values)
    before = int(np.count_nonzero(rank < rank[i]))
    peers = np.flatnonzero(rank == rank[i])
    if len(peers) == 1:
        return before
    crowding = crowding_distances(values[peers], np.ptp(values, axis=0))
    mine = int(np.flatnonzero(peers == i)[0])
    # Ends of a front are infinitely far from the others in their objective; among them the finite part decides.
    order = np.lexsort((keys[peers], crowding[:, 1], crowding[:, 0]))[::-1]
    return before + int(np.flatnonzero(order == mine)[0])


def crowding_distances(front: FloatArray, ranges: FloatArray) -> FloatArray:
    """(n, 2): in how many objectives a row is at an end of the front, and the sum of its gaps to its neighbours.

    ``front``: (n, objectives), mutually non-dominated. Gaps are fractions of ``ranges`` (objectives,), so that units
    do not matter; an objective in which all are equal adds nothing. At an end the single gap counts twice.
    """
    n, n_objectives = front.shape
    ends, gaps = np.zeros(n), np.zeros(n)
    for j in range(n_objectives):
        if ranges[j] <= 0:
            continue
        order = np.argsort(front[:, j], kind="stable")
        steps = np.diff(front[order, j]) / ranges[j]
        left, right = np.concatenate([[np.inf], steps]), np.concatenate([steps, [np.inf]])
        at_end = np.isinf(left) | np.isinf(right)
        single = np.minimum(left, right)
        ends[order] += at_end
        gaps[order] += np.where(at_end, 2 * np.where(np.isinf(single), 0, single), left + right)
    return np.stack([ends, gaps], axis=1)


class _Rung:
    """The finite results at one rung of one bracket, in arrays that grow by doubling."""

    def __init__(self, n_objectives: int) -> None:
        self.numbers: set[int] = set()
        self.n = 0
        self._values = np.empty((16, n_objectives))
        self._keys = np.empty(16)

    def append(self, values: FloatArray, key: float) -> None:
        if self.n == len(self._keys):
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
            self._keys = np.concatenate([self._keys, np.empty_like(self._keys)])
        self._values[self.n], self._keys[self.n] = values, key
        self.n += 1

    @property
    def values(self) -> FloatArray:
        return self._values[: self.n]

    @property
    def keys(self) -> FloatArray:
        return self._keys[: self.n]


class Rungs:
    """What trials had at each rung, and who goes on. Starts empty; :meth:`record` fills in what is known already.

    Args:
        directions: ``maximize`` or ``minimize`` per objective.
        levels: the rungs' epochs, rising.
        reduction: the best 1/reduction go on. With fewer than ``reduction`` finite results everybody does.
        brackets: a trial's first rung is one of the first ``brackets`` levels, drawn by its number: the b-th with a
            weight of reduction^-b, so that most trials are compared early.
        noise_tolerance: standard errors by which every objective of a trial may be improved before it is stopped.
        seed: of brackets and of exact ties.
    """

    def __init__(
        self,
        directions: Sequence[Direction],
        levels: Sequence[int],
        *,
        reduction: float = 3,
        brackets: int = 1,
        noise_tolerance: float = 1,
        seed: int = 0,
    ) -> None:
        self._signs = np.array([SIGNS[d] for d in directions], dtype=float)
        self._levels = tuple(levels)
        self._reduction = reduction
        self._brackets = min(brackets, len(self._levels))
        self._tolerance = noise_tolerance
        self._seed = seed
        self._rungs: dict[tuple[int, int], _Rung] = {}

    def bracket(self, number: int) -> int:
        """The index of the first level at which trial ``number`` is compared."""
        if self._brackets <= 1:
            return 0
        weights = self._reduction ** -np.arange(self._brackets, dtype=float)
        return int(np.random.default_rng([self._seed, number]).choice(self._brackets, p=weights / weights.sum()))

    def compared(self, number: int, epoch: int) -> bool:
        """Whether trial ``number`` is compared with others after ``epoch``."""
        return epoch in self._levels[self.bracket(number) :]

    def record(self, number: int, epoch: int, values: Sequence[float]) -> bool:
        """Remember what a trial had after ``epoch``; False where that is no rung of its own, or known already."""
        if not self.compared(number, epoch):
            return False
        place = (self.bracket(number), epoch)
        rung = self._rungs.setdefault(place, _Rung(len(self._signs)))
        if number in rung.numbers:
            return False
        rung.numbers.add(number)
        mine = self._signs * np.asarray(values, dtype=float)
        if np.isfinite(mine).all():
            rung.append(mine, float(np.random.default_rng([self._seed, number, epoch]).random()))
        return True

    def add(self, number: int, epoch: int, values: Sequence[float], errors: Sequence[float]) -> bool:
        """Record a trial's values (in their own units and directions) and decide: does it go on?

        ``errors``: their standard errors, 0 where unknown. NaN or infinity in ``values`` is worse than everything.
        """
        if not self.record(number, epoch, values):
            return True
        rung = self._rungs[(self.bracket(number), epoch)]
        n = rung.n
        if n < self._reduction:
            return True
        if not np.isfinite(values).all():
            return False
        if self._among_best(rung.values, rung.keys):
            return True
        margin = self._tolerance * np.nan_to_num(np.abs(np.asarray(errors, dtype=float)))
        if not margin.any():
            return False
        better = rung.values.copy()
        better[-1] += margin
        return self._among_best(better, rung.keys)

    def _among_best(self, values: FloatArray, keys: FloatArray) -> bool:
        """Whether the last row is among the best 1/reduction."""
        n = len(values)
        # Whoever dominates it stands before it: most trials that are stopped need no ranking of the whole rung.
        if np.count_nonzero(dominates(values, values[-1])) * self._reduction >= n:
            return False
        return standing(values, n - 1, keys) * self._reduction < n
