"""On real hosts: `ray up`, a study typed outside, a lost connection, `ray down`; and who is kept out."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator

import pytest

from study import names
from study.cluster.submit import EXIT_LOST
from study.ledger import credentials
from tests.cluster.lab import CLUSTER_FILE, SHARED, Lab, cluster, missing, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
SPEC = """
objectives: {accuracy: maximize, faithfulness: maximize}
space:
  lr: {float: [0.02, 0.5], log: true}
  reg_weight: {float: [1.0e-3, 10], log: true, zero: true}
fixed: {network: tiny, batch_size: 64, warmup_epochs: 0.5}
fidelity: {max_epochs: 4}
data: {source: shapes, train_images: 600, validation_images: 100}
evaluation: {images: 50}
budget: {trials: 6}
"""
STUDY = "python -m study.run lab.yaml"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Head, two workers and a laptop; the cluster is up, and its machines refuse what the firewall refuses."""
    with cluster(tmp_path_factory.mktemp("lab"), {"lab.yaml": SPEC}) as lab:
        yield lab


def ports(lab: Lab, target: str) -> list[int]:
    """TCP ports on which ``target`` listens for other machines."""
    listening = lab[target].run("ss -Hltn", check=False).stdout.splitlines()
    local = [line.split()[3] for line in listening]
    return sorted({int(a.rpartition(":")[2]) for a in local if not a.startswith(("127.", "[::1]"))})


def open_from(lab: Lab, source: str, target: str, candidates: list[int]) -> set[int]:
    """Which of them answer to ``source``."""
    address = lab[target].address
    tries = "; ".join(f"nc -z -w 1 {address} {port} && echo open {port}" for port in candidates)
    out = lab[source].run(tries, check=False).stdout
    return {int(line.split()[1]) for line in out.splitlines() if line.startswith("open ")}


def test_with_the_firewall_nothing_but_ssh_answers_from_outside(lab: Lab) -> None:
    before = ports(lab, "head")
    assert {22, 6379} <= set(before)
    assert 6379 in open_from(lab, "laptop", "head", [6379]), "the rules have nothing to do: this test tests nothing"
    for name in ("head", "worker1", "worker2"):
        lab[name].run("nft -f ~/study/clusters/firewall.nft" if name == "head" else "true")
    wait_until(lambda: (lab["worker1"].home / "study/clusters").exists(), 60, "the checkout is on the workers")
    for name in ("worker1", "worker2"):
        wait_until(lambda name=name: (lab[name].home / "study/clusters/firewall.nft").exists(), 60, "it is there")
        lab[name].run("nft -f ~/study/clusters/firewall.nft && nft -f ~/study/clusters/firewall.nft")
    some = [22, *[port for port in before if port != 22][:8]]
    assert open_from(lab, "laptop", "head", some) == {22}
    assert 6379 in open_from(lab, "worker1", "head", [6379])


def test_a_study_typed_outside_runs_on_the_cluster_and_survives_a_lost_connection(lab: Lab) -> None:
    laptop, log = lab["laptop"], lab.folder / "first.log"
    count = 'print(sum(n["Alive"] for n in ray.nodes()))'
    alive = f"python -c 'import ray; ray.init(\"auto\", logging_level=40); {count}'"
    wait_until(lambda: lab["head"].run(alive, check=False).stdout.split()[-1:] == ["3"], 180, "both workers joined")
    first = laptop.start(f"cd ~/study && {STUDY}", log)
    wait_until(lambda: "epoch 1/4" in log.read_text() or first.poll() is not None, 120, "the first report")
    assert first.poll() is None, log.read_text()
    laptop.cut()
    assert first.wait(60) == EXIT_LOST
    laptop.mend()
    text = log.read_text()
    assert text.endswith("the connection is lost; the study goes on there, the same command shows it again\n")
    assert "base64" not in text and "losed" not in text, text
    assert "running on 10.0.0.1" in text and f"cluster {CLUSTER_FILE}" in text
    assert "ssh -N -L 5000:10.0.0.1:5000 -i ~/.ssh/id_ed25519 study@10.0.0.1" in text
    again = laptop.run(f"cd ~/study && {STUDY}", seconds=200)
    assert "front (" in again.stdout and "[study]" not in again.stdout
    assert not (laptop.home / "study" / "results").exists(), "it ran here"
    assert f"ray exec {CLUSTER_FILE} 'cd ~/study && .venv/bin/python -m analysis.pareto lab'" in again.stdout


def test_every_trial_is_in_the_ledger_once_and_two_machines_took_part(lab: Lab) -> None:
    with sqlite3.connect(lab.shared / "mlflow.db") as ledger:
        rows = ledger.execute(
            "select k.value, h.value, s.value from tags k join tags h using (run_uuid) join tags s using (run_uuid) "
            f"where k.key = '{names.TAG_KEY}' and h.key = '{names.TAG_HOST}' and s.key = '{names.TAG_STATE}'"
        ).fetchall()
    assert sorted(key for key, _, _ in rows) == [f"lab/{n}/0" for n in range(6)]
    assert {state for _, _, state in rows} == {names.COMPLETE}
    assert {host for _, host, _ in rows} == {"10.0.0.2", "10.0.0.3"}


def test_status_shows_machines_and_trials_from_outside(lab: Lab) -> None:
    shown = lab["laptop"].run("cd ~/study && python -m study.status lab").stdout
    assert "3 machines · " in shown and "6: 6 complete" in shown, shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.startswith("  10.0.0.")}
    assert rows["10.0.0.1"][:3] == ["up", "0", "0"]
    assert sum(int(row[-1]) for row in rows.values()) == 6 and int(rows["10.0.0.2"][-1]) > 0
    assert "failures      none" in shown


def test_the_ledgers_page_comes_through_the_tunnel_and_wants_the_password(lab: Lab) -> None:
    laptop = lab["laptop"]
    page = (
        "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=5"
    )
    tunnel = (
        "ssh -N -f -o StrictHostKeyChecking=no -o ExitOnForwardFailure=yes -L 5000:10.0.0.1:5000 -i ~/.ssh/id_ed25519 "
        "study@10.0.0.1 > /dev/null 2>&1"
    )
    printed = laptop.run("cd ~/study && python -m study.cluster.password").stdout.split()
    assert printed[0] == "user" and printed[2] == "password"
    done = laptop.run(f"{tunnel}; {page}; echo; {page} -u {printed[1]}:{printed[3]}; echo; {page} -u study:wrong")
    assert done.stdout.split() == ["401", "200", "401"]


def test_without_the_token_ray_refuses_a_client_from_another_machine(lab: Lab) -> None:
    join = 'python -c \'import ray; ray.init(address="10.0.0.1:6379", logging_level=40); print("joined")\''
    refused = lab["worker1"].run(f"mkdir -p /tmp/nobody; HOME=/tmp/nobody timeout 60 {join}", check=False)
    assert refused.returncode != 0 and "joined" not in refused.stdout
    wrong = lab["worker1"].run(f"RAY_AUTH_TOKEN={'0' * 64} timeout 60 {join}", check=False)
    assert wrong.returncode != 0 and "joined" not in wrong.stdout and "oken" in wrong.stdout
    assert "joined" in lab["worker1"].run(join).stdout
    code = lab["head"].run(
        "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/cluster_status", check=False
    )
    assert code.stdout == "401"


def test_the_token_and_the_password_are_in_no_file_log_or_record(lab: Lab) -> None:
    token = (lab["laptop"].home / ".ray" / "auth_token").read_text().strip()
    os.environ["RAY_AUTH_TOKEN"] = token
    try:
        password = credentials.derived("tracking")
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
    assert password
    searched = 0
    for file in lab.folder.rglob("*"):
        if file.is_symlink() or not file.is_file() or "/.venv/" in str(file):
            continue
        content = file.read_bytes()
        searched += 1
        if file.name != "auth_token":
            assert token.encode() not in content, file
        assert password.encode() not in content, file
    assert searched > 100 and list(lab.folder.rglob("raylet.out")), "Ray's logs were not among them"
    for name in ("head", "worker1"):
        assert (lab[name].home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_ray_down_stops_the_head_and_the_results_stay(lab: Lab) -> None:
    laptop = lab["laptop"]
    laptop.run(f"cd ~/study && ray down -y {CLUSTER_FILE}")
    assert 6379 not in ports(lab, "head")
    assert (lab.shared / "lab" / "trials" / "0000" / names.MODEL_FILE).exists()
    down = laptop.run(f"cd ~/study && python -m study.run lab.yaml --cluster {CLUSTER_FILE}", check=False)
    assert down.returncode == 2 and "no head is running" in down.stdout
    table = lab["head"].run(f"cd ~/study && .venv/bin/python -m analysis.pareto lab --storage {SHARED}")
    assert "front" in table.stdout
