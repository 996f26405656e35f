"""How many trials run at once: as many as fit on the nodes that are there, and what the autoscaler may still bring."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.tune.search import Searcher

from study.spec.study_spec import Resources
from study.tuning.joining import probe_own

_REFRESH_SECONDS = 2.0
_BOOTSTRAP = Path.home() / "ray_bootstrap_config.yaml"  # Ray puts the cluster file there on a head


def fits(resources: Resources, node: Mapping[str, float]) -> int:
    """Trials that fit on one node: a trial never spans two."""
    counts = [
        int(node.get(kind, 0.0) / need + 1e-9)
        for kind, need in (("CPU", resources.cpus), ("GPU", resources.gpus))
        if need > 0
    ]
    return min(counts, default=1)


def promised() -> list[dict[str, float]]:
    """The resources of every worker that the autoscaler may come to rent; empty without an autoscaler.

    From the cluster file on the head, or from STUDY_CLUSTER_RESOURCES (JSON, of all workers together), which a
    cluster without such a file sets. A file whose worker types say nothing of their resources promises nothing.
    """
    if text := os.environ.get("STUDY_CLUSTER_RESOURCES"):
        return [{kind: float(amount) for kind, amount in json.loads(text).items()}]
    try:
        config = yaml.safe_load(_BOOTSTRAP.read_text())
        types = config["available_node_types"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []
    nodes: list[dict[str, float]] = []
    for name, kind in types.items():
        if name != config.get("head_node_type") and kind.get("resources"):
            nodes += [kind["resources"]] * int(kind.get("max_workers", config.get("max_workers", 0)))
    return nodes[: int(config.get("max_workers", len(nodes)))]


def present() -> list[dict[str, float]]:
    """The resources of every node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def machines() -> list[dict[str, Any]]:
    """Every machine of the cluster to which this one belongs, also those that are gone: address, alive, cpus, gpus.

    Raises :class:`ClusterError` where no Ray runs here.
    """
    probe_own()
    ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    try:
        return [
            {
                "address": node["NodeManagerAddress"],
                "alive": node["Alive"],
                "cpus": node["Resources"].get("CPU", 0.0),
                "gpus": node["Resources"].get("GPU", 0.0),
            }
            for node in ray.nodes()
        ]
    finally:
        ray.shutdown()


class Capacity:
    """Trials that fit now (``now``) and trials to propose (``wanted``): those, and one node's worth more to rent.

    Proposing no more than that keeps the search informed: what is proposed early knows less.
    """

    def __init__(self, resources: Resources, ahead: Iterable[Mapping[str, float]] | None = None) -> None:
        rentable = [fits(resources, node) for node in (promised() if ahead is None else ahead)]
        self.resources = resources
        self.most = sum(rentable)  # with everything rented; 0 without an autoscaler
        self._step = max(rentable, default=0)
        self._asked = -_REFRESH_SECONDS
        self._now = 0

    @property
    def now(self) -> int:
        if time.monotonic() - self._asked >= _REFRESH_SECONDS:
            self._now = sum(fits(self.resources, node) for node in present())
            self._asked = time.monotonic()
        return self._now

    @property
    def wanted(self) -> int:
        return max(1, self.now, min(self.most, self.now + self._step))

    def resources_present(self) -> dict[str, float]:
        """CPUs, GPUs and what else the nodes that are there have, all together."""
        nodes = present()
        return {kind: sum(node.get(kind, 0.0) for node in nodes) for node in nodes for kind in node}

    def wait(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Wait until a trial fits or may be rented: the machines of a cluster that just came up join one by one."""
        deadline = time.monotonic() + seconds
        if not self.most and not self.now:
            tell(f"waiting for the cluster's machines, up to {seconds / 60:.0f} min ...")
            while not self.now and time.monotonic() < deadline:
                time.sleep(1.0)


class Following(Searcher):
    """Hands on ``searcher``'s proposals while fewer trials live than the cluster has, or may rent, room for.

    ``lost`` says of a trial that ended with an error whether its machine went away under it: such a trial is proposed
    again (:meth:`StudySearcher.resume_later`) instead of failing.
    """

    def __init__(self, searcher: Any, capacity: Capacity, lost: Callable[[str], bool]) -> None:
        super().__init__()
        self._searcher = searcher
        self._capacity = capacity
        self._lost = lost
        self._live: set[str] = set()
        self.returned = 0  # trials that lost their machine and were handed back

    # Ray pickles its searcher now and then to restore it; a study continues from Optuna's storage instead.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        self._searcher.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        self._searcher.restore(checkpoint_path)

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if len(self._live) >= self._capacity.wanted:
            return None
        config = self._searcher.suggest(trial_id)
        if isinstance(config, dict):
            self._live.add(trial_id)
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._live.discard(trial_id)
        if error and self._lost(trial_id):
            self.returned += 1
            self._searcher.resume_later(trial_id)
        else:
            self._searcher.on_trial_complete(trial_id, result, error)
