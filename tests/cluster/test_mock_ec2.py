"""cluster.yaml as far as a mock of EC2 goes: what `ray up` asks AWS for, and that `ray down` gives it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(400)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")
def test_ray_up_asks_for_one_head_behind_ssh_alone_and_ray_down_ends_it(tmp_path: Path) -> None:
    import boto3  # noqa: F401  (a development dependency)

    text = (ROOT / "cluster.yaml").read_text().replace("ami-REPLACE-ME", "ami-785db401")  # an image that the mock knows
    (tmp_path / "cluster.yaml").write_text(text.replace("  ~/study: .  ", f"  ~/study: {ROOT}/study  "))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x" * 64)
    ray = Path(sys.executable).with_name("ray")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, Path(__file__).parent / "mock_ec2.py", tmp_path, ray,
         tmp_path / "cluster.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    (head,) = result["instances"] or [pytest.fail((tmp_path / "ray.log").read_text())]
    assert head["type"] == "m6i.xlarge" and head["image"] == "ami-785db401"
    assert head["tags"]["ray-node-type"] == "head" and "ray-autoscaler" in head["profile"]
    (group,) = result["groups"]
    assert head["groups"] == [group["id"]]
    for rule in group["inbound"]:
        if rule.get("IpRanges"):  # from outside
            assert (rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) == (22, 22, "tcp")
        else:  # among the cluster's machines
            assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [group["id"]]
    assert any(rule.get("IpRanges") for rule in group["inbound"]) and result["keys"]
    assert result["down"] == 0 and set(result["after_down"]) == {"terminated"}
