"""Where a study runs: the rule, what is told to the head, and a session that outlives whoever looks on."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from study.cluster import detached, place, submit
from study.errors import InputError
from study.ledger import credentials
from study.run import parser

FILE = "cluster_name: {name}\nprovider: {{type: {type}}}\nauth: {{ssh_user: ubuntu}}\n"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout with two cluster files, a temporary folder and a home of its own."""
    monkeypatch.delenv("STUDY_STORAGE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    Path("cluster.yaml").write_text(FILE.format(name="cloud", type="aws"))
    Path("clusters").mkdir()
    Path("clusters/mine.yaml").write_text(FILE.format(name="cloud", type="local"))
    Path("clusters/job.yaml").write_text("kind: RayJob\n---\nkind: Service\n")


def brought_up(note: str, name: str, kind: str, age: float) -> None:
    file = Path(tempfile.gettempdir()) / f"ray-config-{note}"
    config = {"cluster_name": name, "provider": {"type": kind}, "auth": {"ssh_user": "u", "ssh_private_key": "~/k.pem"}}
    file.write_text(json.dumps({"config": config}))
    os.utime(file, (time.time() - age,) * 2)


def test_a_machine_that_never_brought_up_a_cluster_runs_in_place() -> None:
    assert place.cluster_file(None) is None
    brought_up("x", "somebody else's", "aws", 0)
    (Path(tempfile.gettempdir()) / "ray-config-broken").write_text("[]")
    assert place.cluster_file(None) is None


def test_the_cluster_that_was_brought_up_last_is_found_by_name_and_provider() -> None:
    brought_up("a", "cloud", "aws", 100)
    assert place.cluster_file(None) == Path("cluster.yaml")
    brought_up("b", "cloud", "local", 50)
    assert place.cluster_file(None) == Path("clusters/mine.yaml")
    assert place.cluster_file("cluster.yaml") == Path("cluster.yaml")


def test_a_machine_of_the_cluster_is_the_place_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    brought_up("a", "cloud", "aws", 0)
    monkeypatch.setenv("STUDY_STORAGE", "/srv/study")
    assert place.cluster_file(None) is None and place.cluster_file("cluster.yaml") is None


@pytest.mark.parametrize(("text", "what"), [(None, "No such file"), ("a: [", "not YAML"), ("a: 1", "no cluster file")])
def test_what_is_no_cluster_file_is_refused(text: str | None, what: str) -> None:
    if text is not None:
        Path("x.yaml").write_text(text)
    with pytest.raises(InputError, match=what):
        place.cluster_file("x.yaml")


def test_ssh_takes_the_files_key_or_the_one_that_ray_made() -> None:
    assert place.connection(Path("cluster.yaml")) == ("ubuntu", None)
    brought_up("a", "cloud", "aws", 0)
    assert place.connection(Path("cluster.yaml")) == ("u", "~/k.pem")
    assert "-L 5000:10.0.0.1:5000 -i ~/k.pem u@1.2.3.4" in submit.tunnel(
        Path("cluster.yaml"), "1.2.3.4", "10.0.0.1", "5000"
    )


def test_the_head_is_told_every_option_but_those_of_the_place() -> None:
    parse = parser()
    args = parse.parse_args(["s.yaml", "--cluster", "c.yaml", "--trials", "7", "--twins", "--data=-x y", "--name", "n"])
    told = submit.options(parse, args)
    assert sorted(told) == ["--data=-x y", "--trials=7", "--twins"]
    assert parse.parse_args(told).data == "-x y"
    assert submit.options(parse, parse.parse_args(["s.yaml", "--local"])) == []


@pytest.mark.slow
def test_a_cluster_whose_head_is_down_is_one_line() -> None:
    Path("s.yaml").write_text((ROOT / "search_spaces" / "quick.yaml").read_text())
    text = FILE.format(name="down", type="local") + "head_node_type: h\n"
    Path("down.yaml").write_text(text.replace("type: local", "type: local, head_ip: 127.0.0.9, worker_ips: []"))
    done = subprocess.run(
        [sys.executable, "-m", "study.run", "s.yaml", "--cluster", "down.yaml"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no head is running" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def look_on(name: str, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "study.cluster.detached", name, "--", *command], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup may have it ignored
    )  # fmt: skip


def test_a_session_outlives_its_onlooker_and_is_started_once() -> None:
    command = ["bash", "-c", "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo over; exit 3"]
    first = look_on("n", *command)
    assert first.stdout is not None
    lines = [first.stdout.readline() for _ in range(2)]
    assert lines == [detached.ATTACHED + "new\n", "begun\n"]
    os.killpg(first.pid, signal.SIGHUP)  # what a closed terminal does
    first.communicate()
    assert detached.running("n") and not detached.start("n", command)
    second = look_on("n", *command)
    assert second.stdout is not None and second.stdout.readline() == detached.ATTACHED + "running\n"
    Path("go").touch()
    out = second.stdout.read()
    assert out == f"begun\nover\n{detached.ENDED}3\n"
    assert not detached.running("n")


def test_a_killed_session_is_over_and_can_be_started_again() -> None:
    assert detached.start("n", ["bash", "-c", "echo $$ > pid; exec sleep 60"])
    while not Path("pid").exists() or not Path("pid").read_text():
        time.sleep(0.02)
    worker = int(Path("pid").read_text())
    os.killpg(os.getpgid(worker), signal.SIGKILL)
    while detached.running("n"):
        time.sleep(0.02)
    with open(os.devnull, "w") as nowhere:
        assert detached.follow("n", nowhere, from_start=True) == 1
    assert detached.start("n", ["true"])


def test_the_ledgers_password_comes_from_the_token_and_is_offered_to_the_clusters_server_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
    assert credentials.derived("tracking") is None
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir(parents=True)
    file.write_text("secret\n")
    password = credentials.derived("tracking")
    assert password and "secret" not in password and password != credentials.derived("other")
    credentials.offer("http://10.0.0.1:5000")
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "", "a laptop shows nobody the cluster's password"
    monkeypatch.setenv("STUDY_STORAGE", "/srv/study")
    credentials.offer("sqlite:///x.db")
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == ""
    credentials.offer("http://10.0.0.1:5000")
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == password
    assert stat.S_ISREG(file.stat().st_mode)
