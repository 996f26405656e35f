"""A study on real hosts: a machine is cut off, the head switched off, the tracking server away; nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.disturbed import Disturbed, specification
from tests.cluster.lab import cluster, missing

pytestmark = [
    pytest.mark.soak,  # six minutes, most of them waiting: more than every test run can spare
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
EPOCHS, TRIALS = 8, 5
# No retries: a trial that lost its machine, or its head, has not failed.
SPEC = specification(epochs=EPOCHS, trials=TRIALS, retries=0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    """Head, two workers and a laptop; the cluster is up and the study has been typed."""
    with cluster(tmp_path_factory.mktemp("lab"), {"faults.yaml": SPEC}) as lab:
        yield Disturbed(lab, "faults")


def test_trials_of_a_machine_that_was_cut_off_go_on_elsewhere(study: Disturbed) -> None:
    study.wait(lambda: any(study.saved(trial) for trial in study.running("worker2")), 300, "an epoch on the machine")
    study.switch_off("worker2", after=3)
    victims = {trial: study.saved(trial) for trial in study.running("worker2")}
    assert victims and min(victims.values()) < EPOCHS
    study.wait(lambda: victims.keys() <= set(study.lost()), 150, "Ray has noticed")
    seen = len(study.shown())  # what was on its way before has been shown
    study.wait(lambda: victims.keys() <= study.reports(seen).keys(), 240, "they report from elsewhere")
    for trial, saved in victims.items():
        assert study.reports(seen)[trial][0] >= min(saved + 1, EPOCHS), "what was saved is not trained again"
    study.wait(lambda: not study.running("worker2"), 60, "the ledger has heard where they are now")
    study.lab.power_on("worker2")


def test_a_head_that_was_switched_off_continues_by_the_same_command(study: Disturbed) -> None:
    assert study.running(), "nothing was left to disturb"
    study.restart_head()
    study.close_lid()
    study.type()
    assert study.command.wait(120) == 2
    assert "bring it up again with `ray up`" in study.shown()
    study.lab.bring_up()
    left = {trial: study.saved(trial) for trial in study.running()}
    study.type()
    study.wait(lambda: study.reports(), 180, "the first report")
    said = study.shown()
    assert f"{TRIALS - len(left)} trials are finished" in said or "were interrupted and go on" in said, said
    for trial, epochs in study.reports().items():
        assert epochs[0] >= min(left.get(trial, 0) + 1, EPOCHS), "what was saved is not trained again"


def test_while_the_tracking_server_is_away_the_study_goes_on_and_no_metric_is_lost(
    study: Disturbed, tmp_path: Path
) -> None:
    with study.server_away():
        seen = len(study.shown())
        study.wait(lambda: study.reports(seen), 60, "a report while the server is away")
        time.sleep(8)
    study.finish(seconds=240)
    assert "lost their machine and went on elsewhere" in study.status()
    study.check(tmp_path, trials=TRIALS, epochs=EPOCHS)
