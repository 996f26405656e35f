"""The page without a browser: what it holds, what it never holds, and that it is made whatever the study is like."""

from __future__ import annotations

import html
import json
import math
import random
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from made_studies import MakeStudy, invented_table, made_per_image, scored
from PIL import Image

from analysis.figures.svg import Axis, Chart
from analysis.load import load_curves, load_study
from analysis.report import main
from analysis.report.facts import environment, specification
from analysis.report.page import collect, render
from analysis.report.trials import (
    SECTIONS,
    masked_images,
    method_heads,
    method_table,
    plain_networks,
    shown_rows,
    train_command,
)
from analysis.statistics.front import find_front
from benchmarks.synthetic import write_runs
from study import metrics, names
from study.command import EXIT_BAD_INPUT, run_command
from study.config import DataConfig, EvaluationConfig, TrialConfig
from study.ledger import Ledger, default_tracking_uri, masked
from study.ledger.records import flatten, parse
from study.spec.study_spec import StudySpec, load_spec
from study.storage.storage import location_options
from study.train import config_from, parser

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Checks nesting, and collects ids, links and outside sources."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.stack, self.ids, self.links, self.sources = text, [], [], [], []
        self.words = ""
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.sources += [v for k, v in found.items() if k in ("src", "srcset", "data") or (k == "href" and tag != "a")]
        if tag == "img":
            assert found["alt"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.stack):
            self.words += data

    @property
    def data(self) -> dict:
        return json.loads(re.search(r'id="data">(.*?)</script>', self.text, re.DOTALL)[1])


def made(storage: Path, study: str) -> Page:
    """By the command, with the figures."""
    assert main([study, "--storage", str(storage)]) == 0
    return checked((storage / study / "report.html").read_text(), storage / study)


def test_every_command_on_the_page_finds_a_study_in_a_folder_with_a_space(make_study: MakeStudy) -> None:
    ledger = make_study([(names.COMPLETE, {"lr": 0.1}, scored(50, 5), [])])
    study = load_study(ledger)
    options = location_options("my results", None)
    page = Page(render(collect(ledger, study, load_curves(ledger, study), None, "typed", options), []))
    shown = re.findall(r">(python -m (?:analysis|study\.evaluate)[^<]*)<", page.text)
    assert len(shown) >= 5
    for line in shown:
        assert shlex.split(html.unescape(line))[-2:] == ["--storage", "my results"], line


def made_of(ledger: Ledger) -> Page:
    """The page alone."""
    study = load_study(ledger)
    return checked(render(collect(ledger, study, load_curves(ledger, study), None, "typed", ""), []))


def checked(text: str, folder: Path | None = None) -> Page:
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else folder and (folder / link).is_file(), link
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page.text)
    return page


@pytest.mark.slow
def test_a_study_of_many_kinds_of_trials(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(Ledger(default_tracking_uri(storage), "large"), 0, 150)
    page = made(storage, "large")
    for words in (
        "150 trials (105 complete, 30 stopped, 15 failed)",
        "raises faithfulness by",
        "worker died",
        "GPU-hours",
        "PED-ANOVA over 105",
        "No saliency maps",
        "python -m study.train --network",
    ):
        assert words in page.words, words
    assert len(page.data["rows"]) == 150 and len(page.data["places"]) == 105
    figures = sorted(f.name for f in (storage / "large" / "figures").iterdir())
    assert figures == sorted(
        f"{n}.{k}"
        for n in ("front", "hypervolume", "curves", "parallel", "importance", "lambda")
        for k in ("png", "svg")
    )
    assert f"report   {storage}/large/report.html" in capsys.readouterr().out


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_killed_command_leaves_the_old_page_or_none(storage: Path) -> None:
    """Twenty kills at random moments: page and figures are whole whenever they are there; the same command goes on."""
    write_runs(Ledger(default_tracking_uri(storage), "large"), 0, 60)
    folder, chance = storage / "large", random.Random(0)
    seen = set()
    for i in range(20):
        if i % 5 == 0:  # a first report
            (folder / "report.html").unlink(missing_ok=True)
        before = (folder / "report.html").read_bytes() if (folder / "report.html").exists() else None
        command = [sys.executable, "-m", "analysis.report", "large", "--storage", str(storage)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(1, 12))
        except subprocess.TimeoutExpired:
            process.kill()
        ended = process.wait()
        seen.add(ended)
        after = (folder / "report.html").read_bytes() if (folder / "report.html").exists() else None
        assert ended == 0 or ended == -signal.SIGKILL
        if after != before:
            assert after is not None
            checked(after.decode(), folder)
        for figure in folder.glob("figures/*.png"):
            Image.open(figure).load()
        for figure in folder.glob("figures/*.svg"):
            ElementTree.parse(figure)
    assert -signal.SIGKILL in seen
    made(storage, "large")
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize(
    ("rows", "objectives", "words"),
    [
        ([], None, "no trial is complete"),
        ([(names.FAILED, {"lr": 0.1}, {}, [])], None, "1 failed"),
        ([(names.RUNNING, {"lr": 0.1}, scored(1, 1), [])], None, "1 running"),
        ([(names.COMPLETE, {"lr": 0.1}, scored(50, 5), [])], None, "at least as good as every other"),
        ([(names.COMPLETE, {"lr": 0.1}, scored(50, math.nan), [])], None, "1 complete trial is not eligible"),
        ([(names.COMPLETE, {"lr": 0.1 * i}, {"val/loss": 2.0 - i}, []) for i in (1, 2)], {"loss": "minimize"}, "0.2"),
        (
            [(names.COMPLETE, {"lr": 0.1 * i}, {**scored(i, 9 - i), "val/loss": 2.0 - i}, []) for i in (1, 2, 3)],
            {"accuracy": "maximize", "faithfulness": "maximize", "loss": "minimize"},
            "3 of 3 trials are not dominated",
        ),
    ],
)
def test_any_study_has_a_page(rows: list, objectives: dict, words: str, make_study: MakeStudy) -> None:
    assert words in made_of(make_study(rows, objectives=objectives)).words


def test_a_study_without_trials_is_no_error(
    make_study: MakeStudy, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study([])
    assert "has no trials yet" in made(storage, "demo").words
    assert "no trial is complete" in capsys.readouterr().err


def test_what_the_ledger_says_is_text(make_study: MakeStudy) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    ledger = make_study([(names.COMPLETE, {"network": evil, "lr": x}, scored(x, 9 - x), []) for x in (1, 2)])
    ledger.open_trial(2, 0, {"network": "tiny", "lr": 3}, {}).finish(names.FAILED, reason=evil)
    page = made_of(ledger)
    assert evil in page.words and evil not in page.text
    assert page.text.count("<script") == 2 and "<img src=x" not in page.text
    assert page.data["rows"][0][page.data["names"].index("network")] == evil


def test_bad_input_is_one_line(make_study: MakeStudy, storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_study([(names.COMPLETE, {}, scored(1, 1), [])])
    (storage / "file").write_text("")
    for arguments in (["nothing"], ["demo", "--out", str(storage / "file")]):
        assert run_command(main, [*arguments, "--storage", str(storage)]) == EXIT_BAD_INPUT
        assert capsys.readouterr().err.count("\n") == 1


def test_the_training_command_trains_this_very_trial() -> None:
    config = TrialConfig(
        "small",
        7,
        0.123,
        reg_weight=0.5,
        reg_error="mse",
        batch_size=32,
        seed=3,
        data=DataConfig(train_images=900),
        schedule="linear",
        norm_lr_multiple=8.0,
        initialization="dirac",
        crop_padding=2,
        crop_mode="reflect",
        reg_warmup_epochs=0.5,
        momentum=0.8,
        gamma=0.5,
        milestones=(0.5,),
        clip_norm=2.0,
        flip=False,
        evaluation=EvaluationConfig(images=None, masking_images=120, shifts=2, methods=("xgrad_cam",)),
    )
    ours = {k: parse(v) for k, v in flatten(config.to_dict()).items()}
    study = invented_table([(3, ours, scored(1, 1))])
    assert config_from(parser().parse_args(train_command(study, 0).split()[3:])) == config
    older = {
        k: v for k, v in ours.items() if k != "reg_gradient"
    }  # there was one gradient, and it is not today's default
    assert "--reg-gradient batch" in train_command(invented_table([(3, older, scored(1, 1))]), 0)
    study = invented_table([(3, {**ours, "rungs": [3]}, scored(1, 1))])
    assert "--rungs" not in train_command(study, 0)
    assert "--reg" not in train_command(invented_table([(3, {"network": "tiny"}, scored(1, 1))]), 0)


def test_methods_have_five_parts_and_what_stands_for_them_alone(tmp_path: Path) -> None:
    scores = {"grad_cam": {"insertion": [40.0, 60.0, 50.0], "deletion_agreement": [10.0, 30.0, 20.0]}}
    reference = {metrics.REFERENCE_MAPS: {"masking_excess": [5.0, 5.0, 7.0]}}
    columns = made_per_image(tmp_path / "table", [1, 0, 1], {**reference, **scores}, masked=2)
    for part in metrics.PARTS:
        del columns[f"{metrics.REFERENCE_MAPS}/{part}"]
    heads = method_heads()
    own, fit = method_table(columns)
    assert (own["method"], fit["method"]) == (metrics.METHODS["grad_cam"], "a linear fit to images with cells deleted")
    assert len(own["cells"]) == len(fit["cells"]) == len(heads)
    own, fit = (dict(zip(heads, row["cells"], strict=True)) for row in (own, fit))
    assert own["insertion (%) ↑"].startswith("50.0 ± ") and own["average drop (%) ↓"] == "0.0 ± 0.0"
    assert own[f"deletion agreement ({metrics.DELETION_AGREEMENT.unit}) ↑"].startswith("20.0 ± ")
    assert fit[f"masking excess ({metrics.MASKING_EXCESS.unit}) ↑"] == "5.0 ± 0.0" and fit["insertion (%) ↑"] == "–"
    assert masked_images(columns) == 2


def test_the_page_says_what_faithfulness_is_and_under_which_protocol(make_study: MakeStudy, tmp_path: Path) -> None:
    file = tmp_path / names.PER_IMAGE_FILE
    made_per_image(file, [1, 0, 1], {"grad_cam": {}}, masked=2)
    ledger = make_study([(names.COMPLETE, {"lr": 0.1}, scored(50, 0, **{metrics.TEMPERATURE: 1.25}), [file])])
    (run_id,) = load_study(ledger).column("run_id")
    ledger._client.set_tag(run_id, names.TAG_PROTOCOL, "paper/2")
    rows = dict(environment(load_study(ledger), {}, "here")["rows"])
    assert rows["protocol"].startswith("paper/2 with ") and metrics.FAITHFULNESS.describes in rows["faithfulness"]
    words = made_of(ledger).words
    assert "Faithfulness by method, 3 images (2 of them masked)" in words
    assert f"Faithfulness ({metrics.FAITHFULNESS.unit}): {metrics.FAITHFULNESS.describes}. Protocol paper/2." in words
    assert "calibrated temperature 1.25" in words


def test_the_network_beside_is_the_twin_or_is_called_something_else() -> None:
    same = {"network": "tiny", "lr": 0.1}
    runs = [
        (0, {**same, "reg_weight": 0.5}, scored(50, 9)),
        (0, {**same, "reg_weight": 0.0}, scored(40, 1)),
        (0, {"network": "small", "lr": 0.2, "reg_weight": 0.0}, scored(45, 2)),
        (0, {"network": "small", "lr": 0.3, "reg_weight": 0.7}, scored(60, 5)),
    ]
    study = invented_table(runs)
    front = find_front(study)
    plain = plain_networks(study, front, [0, 3, 1])
    assert set(plain) == {0, 3}
    assert plain[0].row == 1 and "twin: the same" in plain[0].relation
    assert plain[3].row == 2 and "not a twin" in plain[3].relation


def test_a_long_front_shows_its_ends_and_its_knee() -> None:
    study = invented_table([(0, {"lr": float(i)}, scored(i, 1000 / i)) for i in range(1, 101)])
    front = find_front(study)
    rows = shown_rows(study, front)
    assert front.mask.all() and {0, 99, front.knee} <= set(rows) and len(rows) <= SECTIONS


def test_axes_have_round_ticks_inside() -> None:
    assert Axis("", 0, 10).ticks() == [0, 2, 4, 6, 8, 10]
    assert Axis("", -0.013, 0.032).ticks() == [-0.01, 0, 0.01, 0.02, 0.03]
    assert Axis("", 0.001, 10, log=True).ticks() == [0.001, 0.01, 0.1, 1, 10]
    assert Axis("", 0.3, 3, log=True).ticks() == [0.5, 1, 2]
    for values in ([], [3.0], [math.nan, 2.0], [0.0, 5.0]):
        for log in (False, True):
            axis = Axis.around("", values, log=log)
            assert axis.low < axis.high and axis.ticks() == [t for t in axis.ticks() if axis.low <= t <= axis.high]


def test_a_chart_escapes_and_says_what_it_shows() -> None:
    chart = Chart(Axis("<x>", 0, 1), Axis("y", 0, 1), width=200, height=100)
    chart.line([(0, 0), (1, 1)], "series")
    text = str(chart.render('a "b" <c>'))
    assert "<x>" not in text and "&lt;x&gt;" in text and 'aria-label="a &#34;b&#34; &lt;c&gt;"' in text
    assert 'd="M62 54L186 12"' in text


def test_no_password_is_shown(make_study: MakeStudy) -> None:
    ledger = make_study([])
    typed = "python -m study.run --tracking-uri=https://me:secret@host:5000 --storage s3://key:secret@there/x"
    ledger.open_study(fingerprint="f" * 64, spec=ledger.record().spec, tags={names.TAG_COMMAND: masked(typed)},
                      artifact_location=None)  # fmt: skip
    study = load_study(ledger)
    content = collect(ledger, study, load_curves(ledger, study), None, typed, " --tracking-uri http://a:secret@h")
    text = render(content, [])
    assert "secret" not in text and text.count("https://me:***@host:5000") == 2 and "s3://key:***@there/x" in text


@pytest.mark.parametrize("name", ["quick", "laptop", "cifar100", "paper"])
def test_the_specification_on_the_page_is_the_studys(name: str) -> None:
    spec = load_spec(Path(__file__).parents[2] / "search_spaces" / f"{name}.yaml")
    text = specification(spec.model_dump(mode="json", by_alias=True))
    assert StudySpec.model_validate(yaml.safe_load(text)) == spec
