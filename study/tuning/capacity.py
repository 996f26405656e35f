"""How many trials run at once: as many as fit on the nodes that are there, and what the autoscaler may still bring."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import yaml

from study.errors import InsufficientResourcesError
from study.spec.study_spec import Resources
from study.tuning.joining import probe_own

_REFRESH_SECONDS = 2.0
_BOOTSTRAP = Path.home() / "ray_bootstrap_config.yaml"  # Ray puts the cluster file there on a head


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


def _slots(resources: Resources, node: Mapping[str, float]) -> int:
    return resources.slots(node.get("CPU", 0.0), node.get("GPU", 0.0))


class Capacity:
    """How many trials run at once on the nodes that are there, and on those that the autoscaler may still rent.

    A trial needs one node with room for it: it never spans two.
    """

    def __init__(self, resources: Resources) -> None:
        rentable = [_slots(resources, node) for node in promised()]
        self._resources = resources
        self._most = sum(rentable)  # with everything rented; 0 without an autoscaler
        self._largest = max(rentable, default=0)  # on one rented node
        self._asked = -_REFRESH_SECONDS
        self._now = 0

    @property
    def now(self) -> int:
        """Trials that fit on the nodes that are there."""
        if time.monotonic() - self._asked >= _REFRESH_SECONDS:
            self._now = sum(_slots(self._resources, node) for node in present())
            self._asked = time.monotonic()
        return self._now

    @property
    def wanted(self) -> int:
        """Trials to have under way: those that fit now, and one node's worth more, for which a node is then rented.

        More would be proposed too early, by a search that knows less.
        """
        return max(1, self.now, min(self._most, self.now + self._largest))

    def at_once(self) -> int:
        """How many trials will run at once, with everything rented.

        Raises :class:`InsufficientResourcesError` where a trial fits on no node: Ray would wait for one for ever.
        """
        if at_once := max(self.now, self._most):
            return at_once
        cluster = self.resources_present()
        for kind, need in (("GPU", self._resources.gpus), ("CPU", self._resources.cpus)):
            if need > (have := cluster.get(kind, 0.0)):
                raise InsufficientResourcesError(
                    f"a trial asks for {need:g} {kind}s and the cluster has {have:g}; lower it in the specification or "
                    "join a larger cluster with --address",
                    key=f"resources.{kind.lower()}s",
                    resource=kind,
                )
        raise InsufficientResourcesError(
            f"a trial asks for {self._resources.cpus:g} CPUs and {self._resources.gpus:g} GPUs, and no single machine "
            "of the cluster has both; lower them in the specification or join another cluster with --address",
            key="resources",
            resource="CPU",
        )

    def resources_present(self) -> dict[str, float]:
        """CPUs, GPUs and what else the nodes that are there have, all together."""
        nodes = present()
        return {kind: sum(node.get(kind, 0.0) for node in nodes) for node in nodes for kind in node}

    def wait(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Wait until a trial fits or may be rented: the machines of a cluster that just came up join one by one."""
        deadline = time.monotonic() + seconds
        if not self._most and not self.now:
            tell(f"waiting for the cluster's machines, up to {seconds / 60:.0f} min ...")
            while not self.now and time.monotonic() < deadline:
                time.sleep(1.0)
