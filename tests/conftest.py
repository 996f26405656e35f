"""For every test: one torch thread and seed, a cache of its own, and no skipping of system tests in CI."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# Machines are shared: a slow draw is no failure, the time limit of each test is.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache."""
    before = os.environ.get("STUDY_CACHE")
    os.environ["STUDY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["STUDY_CACHE"]
    else:
        os.environ["STUDY_CACHE"] = before


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """One thread and a fixed seed: the same numbers on every machine, and no thrashing of small networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cifar100_folder() -> Path:
    """Real CIFAR-100 in Parquet: $CIFAR100_DIR, or shared/data/cifar100 beside the checkout."""
    folder = Path(os.environ.get("CIFAR100_DIR", Path(__file__).parents[2] / "shared" / "data" / "cifar100"))
    if not list(folder.glob("train*.parquet")):
        pytest.skip(f"no CIFAR-100 Parquet files in {folder}; name their folder in CIFAR100_DIR")
    return folder


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI the system packages are installed first, so a skipped system test is a failure."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and os.environ.get("CI") == "true" and item.get_closest_marker("system"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI, where it must run"
