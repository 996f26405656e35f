"""What the study uses of Ray without a promise of Ray's. Fails where another version has moved it."""

from __future__ import annotations

import inspect
import os
import time
from pathlib import Path

import pytest
import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial

from study.tuning.joining import connected
from study.tuning.ray_internals import address_of_this_machine, error_of, forgive, node_of_actor


def test_the_noted_address_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address_of_this_machine() == "10.0.0.1:6379"


def test_ray_keeps_a_trials_errors_and_retries_where_they_are_looked_for() -> None:
    assert isinstance(inspect.getattr_static(Trial, "pickled_error_file"), property)
    assert isinstance(inspect.getattr_static(Trial, "num_failures"), property)
    assert "max_failures" in inspect.signature(Trial.__init__).parameters


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_node_of_an_actor_that_died_is_known(tmp_path: Path) -> None:
    class Dying(tune.Trainable):
        def step(self) -> dict[str, object]:
            os._exit(1)

    class Watch(tune.Callback):
        seen: list[object] = []

        def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
            Watch.seen += [error_of(trial), trial.num_failures]
            if len(Watch.seen) == 2:
                forgive(trial)

    with connected("local"):
        tune.Tuner(
            Dying,
            run_config=tune.RunConfig(
                storage_path=str(tmp_path), callbacks=[Watch()], failure_config=tune.FailureConfig(max_failures=1),
                verbose=0,
            ),
        ).fit()  # fmt: skip
        error, _, again, failures = Watch.seen
        assert isinstance(error, RayActorError) and isinstance(again, RayActorError)
        assert failures == 2, "the retry that was given back was not taken"
        deadline = time.monotonic() + 20
        while (node := node_of_actor(error.actor_id)) is None and time.monotonic() < deadline:
            time.sleep(0.5)
        assert node is not None and node["NodeID"] == ray.nodes()[0]["NodeID"]
    assert node_of_actor(None) is None
