"""System metrics go the way of reports: journaled, fenced, once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from study import metrics, names
from study.ledger import Ledger, SystemMetricsSampler, TrialWriter
from study.ledger import writer as writer_module
from tests.ledger.stored import history_of
from tests.ledger.test_writer import break_ledger, journals, new_writer, report

USED = f"{metrics.SYSTEM_METRICS}system_memory_usage_percentage"


def new_sampler(writer: TrialWriter, **more: float) -> SystemMetricsSampler:
    sampler = SystemMetricsSampler(writer, **more)
    sampler.start()
    return sampler


def test_samples_are_told_and_end_with_the_trial(ledger: Ledger, tmp_path: Path) -> None:
    writer = new_writer(ledger, tmp_path / "0000")
    sampler = new_sampler(writer, every=0.2)
    writer.report([report(1)])
    time.sleep(0.7)
    sampler.stop()
    assert writer.finish(names.COMPLETE)
    (record,) = ledger.trials()
    samples = history_of(ledger, record.run_id, USED)
    assert 3 <= len(samples) <= 5 and all(0 < value <= 100 for _, value in samples)
    assert all(0 <= second <= 20 for second, _ in samples)
    for quantity in ("cpu_utilization_percentage", "disk_available_megabytes", "network_receive_megabytes"):
        assert metrics.SYSTEM_METRICS + quantity in record.metrics
    assert history_of(ledger, record.run_id, "val/accuracy") == [(1, 10.0)]
    assert journals(tmp_path / "0000") == []


def test_a_short_trial_has_one_sample(ledger: Ledger, tmp_path: Path) -> None:
    writer = new_writer(ledger, tmp_path / "0000")
    new_sampler(writer).stop()
    assert writer.finish(names.COMPLETE)
    (record,) = ledger.trials()
    assert len(history_of(ledger, record.run_id, USED)) == 1


def test_what_could_not_be_told_is_told_by_the_next_attempt(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_GATHER", 0.02)
    with monkeypatch.context() as patch:
        break_ledger(patch)
        writer = new_writer(ledger, tmp_path / "0000")
        new_sampler(writer).stop()
        writer.report([report(1)])
        untold = journals(tmp_path / "0000")[0].read_bytes()
    (tmp_path / "0001").mkdir()
    (tmp_path / "0001" / f"{names.JOURNAL}{0:015d}-00000000.jsonl").write_bytes(untold)  # as a killed process left it
    other = Ledger(ledger.tracking_uri, "demo")
    next_one = TrialWriter(other, tmp_path / "0001", trial=1, seed=0, params={}, tags={})
    next_one.start()
    assert next_one.finish(names.COMPLETE)
    record = ledger.trials()[-1]
    assert record.trial == 1 and len(history_of(ledger, record.run_id, USED)) == 1
    assert history_of(ledger, record.run_id, "val/accuracy") == [(1, 10.0)]


def test_a_superseded_attempt_samples_no_more(ledger: Ledger, tmp_path: Path) -> None:
    cut_off = new_writer(ledger, tmp_path / "a")
    sampler = new_sampler(cut_off, every=0.2)
    while cut_off.waiting:
        time.sleep(0.05)
    replacement = new_writer(ledger, tmp_path / "b")
    assert replacement.finish(names.COMPLETE)
    deadline = time.monotonic() + 10
    while sampler.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert cut_off.superseded and not sampler.running
    sampler.stop()
