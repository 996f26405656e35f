"""A study's experiment in MLflow: found or created once, and the runs in it, whoever else creates the same."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from study.errors import InputError
from study.ledger.tracking import sqlite_path

_RUNS_PER_PAGE = 1000
_STAND_BACK = 0.1, 1.0  # seconds before a run that two processes created at once is looked for again


class Experiment:
    """The runs of one MLflow experiment. ``id`` is MLflow's."""

    def __init__(self, client: Any, experiment_id: str) -> None:
        self.id = experiment_id
        self._client = client

    def search(self, matching: str, limit: int | None = None) -> list[Any]:
        """Runs that match MLflow's filter, the oldest first."""
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self.id],
                matching,
                max_results=limit or _RUNS_PER_PAGE,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            runs += page
            token = page.token
            if not token or limit:
                return runs

    def first(self, matching: str) -> Any:
        """The oldest run that matches; None where there is none."""
        return next(iter(self.search(matching, limit=1)), None)

    def create_once(self, matching: str, name: str, tags: Mapping[str, str]) -> Any:
        """Create the only run that matches; where another process creates it at the same time, both get the same one.

        Whoever sees another's run beside their own deletes their own and looks again after a pause of random length:
        the clocks of two machines cannot say which run is older.
        """
        while True:
            run = self._client.create_run(self.id, tags=dict(tags), run_name=name)
            if len(self.search(matching)) == 1:
                return run
            self._client.delete_run(run.info.run_id)
            time.sleep(random.uniform(*_STAND_BACK))
            if found := self.first(matching):
                return found


def find_experiment(client: Any, name: str) -> Experiment | None:
    """The experiment of that name, unless it does not exist or is deleted."""
    found = client.get_experiment_by_name(name)
    return Experiment(client, found.experiment_id) if found and found.lifecycle_stage == "active" else None


def find_or_create_experiment(client: Any, name: str, artifact_location: str | None) -> Experiment:
    """The experiment of that name. ``artifact_location``: None for a folder beside a SQLite store, or the server's.

    Raises :class:`InputError` where it is deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        path = sqlite_path(client.tracking_uri)
        if artifact_location is None and path is not None:  # MLflow would take the current folder
            artifact_location = (path.parent / name / "artifacts").as_uri()
        try:
            return Experiment(client, client.create_experiment(name, artifact_location=artifact_location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was first
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise InputError(f"study {name!r} is deleted in MLflow; restore it there or choose another --name")
    return Experiment(client, found.experiment_id)
