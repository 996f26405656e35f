"""Joining a cluster: what fits, and what is refused before Ray would try for minutes."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from study import run
from study.config import TrialConfig
from study.errors import ClusterError, InputError, InsufficientResourcesError
from study.spec.study_spec import Resources
from study.tuning import capacity
from study.tuning.capacity import Capacity
from study.tuning.joining import probe, probe_own
from study.tuning.progress import clock, describe


def test_how_many_trials_fit() -> None:
    assert Resources(cpus=1).slots(2.0, 0.0) == 2
    assert Resources(cpus=4, gpus=0.5).slots(64.0, 4.0) == 8
    assert Resources(cpus=4, gpus=0.5).slots(8.0, 4.0) == 2
    assert Resources(cpus=0.1, gpus=0.1).slots(10.0, 1.0) == 10
    assert Resources(cpus=4, gpus=0.5).slots(8.0, 0.0) == 0


def test_a_trial_never_spans_two_nodes_and_one_node_more_is_rented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "present", lambda: [{"CPU": 3.0}, {"CPU": 3.0}, {"GPU": 1.0}])
    monkeypatch.setattr(capacity, "promised", list)
    alone = Capacity(Resources(cpus=2))
    assert (alone.now, alone.wanted, alone.at_once()) == (2, 2, 2)
    monkeypatch.setattr(capacity, "promised", lambda: [{"CPU": 8.0}] * 3)
    growing = Capacity(Resources(cpus=2))
    assert (growing.now, growing.wanted, growing.at_once()) == (2, 2 + 4, 12)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (Resources(gpus=8), "8 GPUs and the cluster has 4"),
        (Resources(cpus=100), "100 CPUs and the cluster has 64"),
    ],
)
def test_more_than_the_cluster_has_is_refused(
    resources: Resources, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "present", lambda: [{"CPU": 64.0, "GPU": 4.0}])
    with pytest.raises(InsufficientResourcesError, match=words):
        Capacity(resources).at_once()


def test_a_trial_that_fits_on_no_single_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All machines together have enough; Ray would wait for one that has it alone."""
    monkeypatch.setattr(capacity, "present", lambda: [{"CPU": 3.0}, {"CPU": 3.0, "GPU": 1.0}])
    monkeypatch.setattr(capacity, "promised", list)
    for resources in (Resources(cpus=4), Resources(cpus=4, gpus=1)):
        with pytest.raises(InsufficientResourcesError, match="no single machine of the cluster has both") as caught:
            Capacity(resources).at_once()
        assert caught.value.key == "resources"


@pytest.mark.slow
@pytest.mark.parametrize(("cluster", "missing"), [({"CPU": 1.0, "GPU": 8.0}, "CPU"), ({"CPU": 64.0}, "GPU")])
def test_only_a_missing_gpu_is_read_as_no_gpu(
    cluster: dict[str, float], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study that `study.run` runs by itself is planned where there is no GPU, and refused for anything else."""
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": cluster}])
    monkeypatch.setattr(run, "_refuse_without_gpu", lambda spec: 77)
    arguments = ["--local", "--storage", str(tmp_path)]
    if missing == "GPU":
        assert run.main(arguments) == 77
        return
    with pytest.raises(InsufficientResourcesError) as caught:
        run.main(arguments)
    assert (caught.value.resource, caught.value.key) == ("CPU", "resources.cpus")


def test_silent_address_is_refused_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        start = time.monotonic()
        with pytest.raises(ClusterError, match="no Ray cluster answers"):
            probe(f"127.0.0.1:{taken.getsockname()[1]}")
        assert time.monotonic() - start < 6
    with pytest.raises(InputError, match="HOST:PORT"):
        probe("nonsense")
    probe("auto")


def test_a_head_that_was_switched_on_again_without_ray_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's note of its address is on the disk still; KubeRay names it in RAY_ADDRESS."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(ClusterError, match="bring it up again with `ray up`"):
            probe_own()
        taken.listen()
        probe_own()
        assert time.monotonic() - start < 6


def test_what_the_table_says() -> None:
    assert clock(75) == "1:15" and clock(3675) == "1:01:15" and clock(-1) == "0:00"
    config = TrialConfig(network="tiny", epochs=1, lr=0.1, reg_weight=0.0075, reg_error="cosine")
    assert describe(config) == "tiny  λ 0.0075 cosine  lr 0.1"
    assert describe(replace(config, reg_weight=0.0, reg_error=None)) == "tiny  λ 0  lr 0.1"
