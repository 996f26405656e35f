"""The search as Ray Tune's searcher. All that it knows is in :class:`study.search.search.Search`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ray.tune.search import Searcher

from study import names
from study.search.search import Search
from study.tuning.job import Job, Settings

_REPORT = "report/"


class Limit(Protocol):
    """How many trials may be under way; it may change while they run."""

    @property
    def wanted(self) -> int: ...


class StudySearcher(Searcher):
    """Hands Ray the search's trials while fewer are under way than ``limit`` allows, and tells the search their ends.

    ``lost`` says of a trial (Ray's id) that ended with an error whether its machine went away under it: such a trial is
    handed out again instead of failing.
    """

    def __init__(
        self,
        search: Search,
        settings: Settings,
        limit: Limit | None = None,
        lost: Callable[[str], bool] = lambda trial_id: False,
    ) -> None:
        super().__init__()
        self._search = search
        self._settings = settings
        self._limit = limit
        self._lost = lost
        self._numbers: dict[str, int] = {}  # Ray's id of every trial under way -> its number
        self.returned = 0  # trials that lost their machine and were handed back

    # Ray pickles its searcher now and then to restore it; a study continues from Optuna's storage instead.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("{}")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to do: the state is in Optuna's storage."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration; None while there is no room for it; FINISHED when nothing is left to try."""
        if self._limit is not None and len(self._numbers) >= self._limit.wanted:
            return None
        suggestion = self._search.next_trial()
        if suggestion is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = suggestion.number
        return Job(self._settings, suggestion).ray_config()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        result = result or {}
        if error and self._lost(trial_id):
            self.returned += 1
            self._search.resume_later(number)
        elif error:
            self._search.end(number, names.FAILED, {}, "crashed more often than it may be retried")
        else:
            state = result.get("state", names.RUNNING)
            self._search.end(number, state, report_of(result), str(result.get("reason")))


def report_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The trial's report out of Ray's result, whose nested keys Ray joins with slashes."""
    return {key.removeprefix(_REPORT): value for key, value in result.items() if key.startswith(_REPORT)}
