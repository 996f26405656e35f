"""`ray up` and `ray down` of cluster.yaml against a mock of EC2, in a network with nothing but loopback; prints JSON.

Started by test_mock_ec2.py. The head never answers ssh, since no machine is there: what AWS was asked for is printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

folder, ray, cluster_file = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ |= {
    "HOME": str(folder), "TMPDIR": str(folder), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_DEFAULT_REGION": "us-west-2", "AWS_ENDPOINT_URL": "http://127.0.0.1:5999",
    "MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

import boto3  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402

server = ThreadedMotoServer(ip_address="127.0.0.1", port=5999, verbose=False)
server.start()
ec2 = boto3.client("ec2")


def instances() -> list[dict[str, Any]]:
    return [i for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]]


log = (folder / "ray.log").open("w")
up = subprocess.Popen([ray, "up", "-y", cluster_file], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
deadline = time.monotonic() + 180
while not instances() and up.poll() is None and time.monotonic() < deadline:
    time.sleep(0.5)
time.sleep(2)
found = instances()
groups = ec2.describe_security_groups(GroupNames=["interpretable-gradients"])["SecurityGroups"] if found else []
up.kill()
up.wait()
down = subprocess.run([ray, "down", "-y", cluster_file], stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False)
result = {
    "instances": [
        {"type": i["InstanceType"], "image": i["ImageId"], "tags": {t["Key"]: t["Value"] for t in i["Tags"]},
         "profile": i.get("IamInstanceProfile", {}).get("Arn", ""),
         "groups": [g["GroupId"] for g in i["SecurityGroups"]]}
        for i in found
    ],
    "groups": [{"id": g["GroupId"], "inbound": g["IpPermissions"]} for g in groups],
    "keys": [k["KeyName"] for k in ec2.describe_key_pairs()["KeyPairs"]],
    "after_down": [i["State"]["Name"] for i in instances()], "down": down.returncode,
}  # fmt: skip
server.stop()
print(json.dumps(result))
