"""Timing the real thing: what is timed, and that two processes at once give speeds of the right order."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.planning.plan import make_plan
from study.planning.simulation import Images
from study.planning.timing import configurations, measure
from study.spec.study_spec import load_spec

EXAMPLE = Path(__file__).parents[1] / "spec" / "example.yaml"


def test_every_network_and_batch_size_is_timed_once(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("batch_size: 32, ", "").replace("space:", "space:\n  batch_size: {int: [8, 64]}")
    (tmp_path / "spec.yaml").write_text(text)
    timed = [(c.network, c.batch_size) for c in configurations(load_spec(tmp_path / "spec.yaml"))]
    assert sorted(timed) == [("small", 8), ("small", 64), ("tiny", 8), ("tiny", 64)]


@pytest.mark.slow
def test_two_at_once_on_this_machine() -> None:
    spec = load_spec(EXAMPLE)
    profile = measure(spec, n_classes=10, at_once=2, seconds=2)
    assert profile.at_once == min(2, profile.slots)
    tiny, small = profile.speeds
    assert (tiny.network, small.network) == ("tiny", "small") and profile.scaled == ()
    for speed in profile.speeds:
        assert 0 < speed.plain < speed.regularized
        assert 0 < speed.classified < speed.scored
        assert speed.masked > 0
    assert tiny.plain < small.plain
    # The network's 32-bit numbers; weights and momentum make a checkpoint about twice as large.
    assert 1.5 * tiny.model_bytes < tiny.checkpoint_bytes < 2.5 * tiny.model_bytes
    plan = make_plan(spec, profile, Images(1600, 400, 10), at_once=2)
    assert 10 < plan.interval("wall")[1] < 3600
