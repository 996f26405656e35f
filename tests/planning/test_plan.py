"""What ``--plan`` prints: intervals, money, the budget that ends first, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.errors import InputError
from study.planning.plan import duration, make_plan, number, plan_study, size
from study.planning.simulation import Images
from study.spec.study_spec import load_spec
from tests.planning.profiles import profile, speed

EXAMPLE = Path(__file__).parents[1] / "spec" / "example.yaml"
IMAGES = Images(1600, 400, 10)


def test_the_same_study_has_the_same_plan() -> None:
    plans = [make_plan(load_spec(EXAMPLE), profile(spread=0.1), IMAGES, at_once=2) for _ in range(2)]
    assert plans[0] == plans[1]


def test_quantiles_are_in_order_and_the_interval_is_not_a_point() -> None:
    plan = make_plan(load_spec(EXAMPLE), profile(start=4.0, spread=0.1), IMAGES, at_once=2)
    low, middle, high = plan.interval("wall")
    assert low < middle < high
    inside = sum(low <= o.wall <= high for o in plan.outcomes) / len(plan.outcomes)
    assert inside == pytest.approx(0.8, abs=0.02)


def test_more_at_once_ends_earlier_and_takes_no_less_work() -> None:
    plans = [make_plan(load_spec(EXAMPLE), profile(), IMAGES, at_once=n) for n in (1, 2, 8)]
    walls = [p.interval("wall")[1] for p in plans]
    assert walls[0] > walls[1] > walls[2]
    assert plans[0].at_once == 1 and plans[2].at_once == 8


@pytest.mark.parametrize(
    ("resources", "at_once", "units"), [("{cpus: 1}", 5, 3), ("{gpus: 0.5}", 5, 3), ("{gpus: 2}", 3, 6)]
)
def test_what_is_paid_for(tmp_path: Path, resources: str, at_once: int, units: int) -> None:
    """Machines with room for two trials; GPUs that two trials share, or of which one takes two."""
    file = tmp_path / "spec.yaml"
    file.write_text(EXAMPLE.read_text().replace("{cpus: 1, gpus: 0}", resources))
    plan = make_plan(load_spec(file), profile(), IMAGES, at_once=at_once, price=2)
    assert plan.units == units
    cost = 2 * units * plan.interval("wall")[1] / 3600
    (line,) = [line for line in plan.lines() if line.startswith("cost")]
    assert line.split()[2] == number(cost)


@pytest.mark.parametrize(("time", "words"), [("10s", "time budget of 10 s, not the 8 trials"), ("5h", "8 trials, not")])
def test_which_budget_ends_first(time: str, words: str) -> None:
    spec = load_spec(EXAMPLE, overrides={"budget.time": time})
    text = "\n".join(make_plan(spec, profile(), IMAGES, at_once=2).lines())
    assert words in text and "100 % of the plays" in text


def test_lines_are_short_and_the_names_stand_over_their_numbers() -> None:
    spec = load_spec(EXAMPLE)
    lines = make_plan(spec, profile(), IMAGES, at_once=2, price=1.5).lines()
    assert max(len(line) for line in lines) <= 100
    assert "the best 1/3 go on" in lines[0]


def test_the_share_of_scoring_is_that_of_all_its_times() -> None:
    """One rung and the end, each 10 images at 10 ms and 5 of them 20 ms more, beside 30 steps of 200 or 100 ms."""
    spec = load_spec(EXAMPLE, overrides={"evaluation.images": 10, "evaluation.masking_images": 5})
    times = profile(speed(plain=0.1, regularized=0.2, scored=0.01, masked=0.02), speed("small"))
    lines = make_plan(spec, times, Images(160, 400, 10), at_once=2).lines()
    (line,) = [line for line in lines if line.startswith("tiny")]
    assert line.split()[-4:] == ["20.0", "7", "to", "13"]


def test_numbers_as_people_say_them() -> None:
    assert [duration(s) for s in (30, 600, 7200, 864000)] == ["30 s", "10.0 min", "2.0 h", "10.0 days"]
    assert [number(v) for v in (0, 0.0123456, 1.5, 123.456, 22100)] == ["0", "0.0123", "1.50", "123", "22,100"]
    assert [size(b) for b in (512, 2.5e6, 3e9, 4e12)] == ["0.512 kB", "2.5 MB", "3 GB", "4 TB"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"at_once": 0}, "--at-once 0"),
        ({"at_once": -3}, "--at-once -3"),
        ({"price": 0.0}, "--price 0"),
        ({"price": float("nan")}, "--price nan"),
        ({"profile_file": "nowhere.json"}, "--profile nowhere.json"),
        ({"save_file": "nowhere/p.json"}, "--save-profile nowhere/p.json"),
        ({"save_file": "."}, "--save-profile .: is a folder"),
    ],
)
def test_refused_options(options: dict, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=words):
        plan_study(load_spec(EXAMPLE), "quick", **options)
    assert capsys.readouterr().out == ""


def test_a_plan_from_a_profile_needs_no_torch(tmp_path: Path) -> None:
    """Cifar-100 that is not fetched yet, on a machine that only plans."""
    import subprocess
    import sys

    profile().write(tmp_path / "p.json")
    text = EXAMPLE.read_text().replace("source: shapes", "source: cifar100")
    (tmp_path / "spec.yaml").write_text(text)
    script = (
        "import sys; from study.run import main; "
        f"main([{str(tmp_path / 'spec.yaml')!r}, '--plan', '--profile', {str(tmp_path / 'p.json')!r}]); "
        "sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1,600 images" in done.stdout
