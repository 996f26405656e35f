"""Documents against the program: every option, make target and specification that they show is what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs.reference import COMMANDS, PAGES, parser
from study.metrics import CANDIDATES, FAITHFULNESS_IS
from study.spec.study_spec import StudySpec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def options(command: str) -> set[str]:
    return {name for action in parser(command)._actions for name in action.option_strings}


@pytest.mark.parametrize("page", PAGES)
def test_a_generated_page_is_what_the_program_declares(page: str) -> None:
    assert PAGES[page]() == (ROOT / "docs" / page).read_text(), "`make docs` writes it anew"


def test_the_pages_depend_on_no_terminal_and_no_environment() -> None:
    code = "from docs.reference import PAGES; print(*(page() for page in PAGES.values()), sep='', end='')"
    narrow = {**os.environ, "COLUMNS": "40", "STUDY_STORAGE": "elsewhere", "PYTHONPATH": str(ROOT)}
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=narrow, capture_output=True, check=True).stdout
    assert printed.decode() == "".join((ROOT / "docs" / page).read_text() for page in PAGES)


def test_the_table_of_the_readme_names_every_command() -> None:
    assert re.findall(r"^\| `python -m ((?:study|analysis)\.\w+)", README, re.MULTILINE) == list(COMMANDS)


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
