"""README against the program: every option, make target and specification that it shows is what there is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

from study.metrics import CANDIDATES, FAITHFULNESS_IS
from study.spec.study_spec import StudySpec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = (
    "study.run",
    "study.train",
    "study.evaluate",
    "study.rescore",
    "study.status",
    "study.ui",
    "analysis.load",
    "analysis.pareto",
    "analysis.importance",
    "analysis.report",
    "analysis.twins",
    "analysis.export",
    "analysis.verify",
)
#: Explained once, in the row of study.run, and left out where a row has them only because every analysis does.
SHARED = {"--storage", "--tracking-uri", "--json", "--out"}


def row(command: str) -> str:
    (line,) = [line for line in README.splitlines() if line.startswith(f"| `python -m {command}")]
    return line


def options(command: str) -> set[str]:
    parse = importlib.import_module(command).parser()
    return {name for action in parse._actions for name in action.option_strings if name.startswith("--")} - {"--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_table_of_commands_names_what_help_names(command: str) -> None:
    named = set(re.findall(r"--[a-z-]+", row(command)))
    assert named <= options(command), "README promises an option that is not there"
    assert options(command) - SHARED <= named, "README is silent about an option"


def test_every_command_of_the_readme_takes_its_options() -> None:
    lines = re.findall(r"python -m ((?:study|analysis)\.[a-z]+)([^`'#\n]*)", README)
    assert {command for command, _ in lines} == set(COMMANDS)
    for command, rest in lines:
        assert set(re.findall(r"--[a-z-]+", rest)) <= options(command)


def test_every_make_target_of_the_readme_is_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets


def test_every_file_that_the_documents_link_to_is_there() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_readme_explains_the_faithfulness_that_is_measured() -> None:
    (chosen,) = re.findall(r"`faithfulness` is the \*\*([a-z ]+)\*\*", README)
    assert chosen == FAITHFULNESS_IS.name.replace("_", " ")
    for metric in CANDIDATES:
        assert metric.name.replace("_", " ") in README


def test_the_specification_of_the_readme_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    StudySpec.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize("page", ["docs/tour.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`((?:study|analysis|tests|benchmarks|search_spaces)/[\w./]*)`", (ROOT / page).read_text())
    assert len(named) > 5 and [name for name in named if not (ROOT / name).exists()] == []
