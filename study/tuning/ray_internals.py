"""What the study needs of Ray that Ray keeps private.

Checked with Ray 2.60. tests/tuning/test_ray_internals.py fails where another version has moved it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle


def address_of_this_machine() -> str:
    """``HOST:PORT`` of the cluster that this machine is part of, as Ray has noted it. Raises ConnectionError."""
    return str(ray._private.services.get_ray_address_from_environment("auto", None))


def node_of_actor(actor_id: str | None) -> dict[str, Any] | None:
    """The entry in ``ray.nodes()`` of the node that an actor runs, or ran, on. Ray's public way needs its dashboard."""
    if not actor_id:
        return None
    actor = ray._private.state.actors(actor_id=actor_id)
    node_id = (actor.get("Address") or {}).get("NodeID") if actor else None
    return next((node for node in ray.nodes() if node["NodeID"] == node_id), None)


def error_of(trial: Any) -> BaseException | None:
    """The latest error of one of Ray Tune's trials.

    Ray's own way reads its storage, where the error arrives later, or never.
    """
    file = trial.pickled_error_file
    try:
        return cloudpickle.loads(Path(file).read_bytes()) if file else None
    except Exception:  # of whatever class an error is, it may not be loadable here
        return None


def forgive(trial: Any) -> None:
    """Give one of Ray Tune's trials a retry back."""
    trial.max_failures += 1
