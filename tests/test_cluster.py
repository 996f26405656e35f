"""cluster.yaml against Ray's own schema, and what it must never hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parents[1] / "cluster.yaml"


def load() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


@pytest.mark.slow
def test_rays_own_schema_accepts_it_and_refuses_a_typo() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load()))
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config({**load(), "max_wrokers": 2}))


def test_workers_are_spot_and_start_at_none_and_access_needs_a_token() -> None:
    config = load()
    worker = config["available_node_types"]["gpu_worker"]
    assert worker["min_workers"] == 0
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert config["idle_timeout_minutes"] > 0
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert all("RAY_AUTH_MODE=token" in c for c in commands if "ray start" in c)


def test_machines_only() -> None:
    for word in ("reg_weight", "lr:", "epochs", "trials:"):
        assert word not in FILE.read_text()
