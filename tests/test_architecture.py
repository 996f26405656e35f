"""The layout's rules: imports run one way, one door to each outside world, nothing of one machine in the text."""

from __future__ import annotations

import ast
import re
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Room -> rooms it may import (beside itself and EVERYBODY). Function-local imports count as well.
EVERYBODY = {"study", "study.command", "study.config", "study.errors", "study.metrics", "study.names", "study.spec"}
ALLOWED: dict[str, set[str]] = {
    **{room: set() for room in EVERYBODY},
    "study.storage": set(),
    "study.ledger": {"study.storage"},
    "study.data": {"study.storage"},
    "study.networks": set(),
    "study.saliency": {"study.networks"},
    "study.faithfulness": {"study.saliency", "study.networks", "study.data"},
    "study.training": {"study.networks", "study.data", "study.storage"},
    "study.trial": {"study.training", "study.faithfulness", "study.networks", "study.data", "study.storage"},
    "study.train": {"study.trial", "study.storage"},
    "study.evaluation": {
        "study.training", "study.faithfulness", "study.saliency", "study.networks", "study.data", "study.ledger",
        "study.storage",
    },
    "study.evaluate": {"study.evaluation", "study.faithfulness", "study.data", "study.storage"},
    "study.search": {"study.ledger", "study.storage"},
    "study.planning": {  # of the search the rule of the rungs
        "study.trial", "study.training", "study.faithfulness", "study.networks", "study.data", "study.search",
        "study.storage",
    },
    "study.tuning": {"study.search", "study.trial", "study.ledger", "study.data", "study.storage"},
    "study.cluster": {"study.ledger"},
    "study.rescoring": {
        "study.trial", "study.training", "study.faithfulness", "study.networks", "study.data", "study.ledger",
        "study.storage", "study.search",
    },
    "study.rescore": {"study.rescoring", "study.ledger", "study.storage", "study.search"},
    "study.run": {"study.cluster", "study.planning", "study.search", "study.tuning", "study.storage"},
    "study.status": {"study.cluster", "study.ledger", "study.storage", "study.tuning"},
    "study.ui": {"study.ledger"},
    "analysis": set(),
    "analysis.table": {"study.ledger"},
    "analysis.load": {"analysis.table", "study.storage", "study.ledger"},
    "analysis.statistics": {"analysis.table", "study.search"},
    "analysis.figures": {"analysis.table", "analysis.statistics", "study.storage"},
    "analysis.importance": {
        "analysis.table", "analysis.load", "analysis.statistics", "analysis.figures", "study.storage",
    },
    "analysis.twins": {"analysis.table", "analysis.load", "analysis.statistics", "study.faithfulness", "study.ledger"},
    "analysis.pareto": {
        "analysis.table", "analysis.load", "analysis.statistics", "analysis.figures", "analysis.twins", "study.storage",
    },
    "analysis.report": {
        "analysis.table", "analysis.load", "analysis.statistics", "analysis.figures", "analysis.twins", "study.train",
        "study.ledger", "study.networks", "study.data", "study.faithfulness", "study.saliency", "study.training",
        "study.storage",
    },
    "analysis.export": {
        "analysis.table", "analysis.load", "analysis.statistics", "study.search", "study.ledger", "study.networks",
        "study.data", "study.faithfulness", "study.training", "study.storage",
    },
    "analysis.verify": {"analysis.export"},
}  # fmt: skip

#: Outside world -> the files that may import it.
DOORS: dict[str, tuple[str, ...]] = {
    "ray": ("study/tuning/",),
    "optuna": ("study/search/", "analysis/statistics/importance.py"),
    "mlflow": ("study/ledger/", "analysis/export/register.py"),
}
#: Imported before a command's arguments are known to be good: nothing heavy at the top.
LIGHT = ("study/config.py", "study/errors.py", "study/metrics.py", "study/names.py", "study/spec/space.py",
         "study/spec/study_spec.py", "study/run.py", "study/planning/plan.py", "study/planning/speeds.py",
         "study/planning/timing.py", "study/command.py",
         "study/ui.py", "study/train.py", "study/status.py", "study/evaluate.py", "study/rescore.py",
         "study/storage/storage.py", "study/networks/__init__.py")  # fmt: skip
HEAVY = {"torch", "torchvision", "ray", "mlflow", "optuna", "matplotlib", "pyarrow", "numpy"}
FORBIDDEN_FILES = {"utils.py", "helpers.py", "common.py"}


def room_of(module: str) -> str:
    """``study.data.cache`` -> ``study.data``: a folder is one room."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else parts[0]


def imports(source: str) -> list[str]:
    """Every absolute module name imported anywhere in a file, also inside functions."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{alias.name}" if node.module == "study" else node.module for alias in node.names]
    return found


def violations(path: str, source: str) -> list[str]:
    """What a file at ``path`` (relative, with slashes) does against the rules."""
    module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    room = room_of(module)
    wrong = []
    for name in imports(source):
        top = name.split(".")[0]
        if top in DOORS and not path.startswith(DOORS[top]):
            wrong.append(f"{path} imports {name}: only {', '.join(DOORS[top])} may")
        target = room_of(name)
        if (
            top in ("study", "analysis")
            and target not in ALLOWED[room] | EVERYBODY | {room}
            and name != "study.__version__"
        ):
            wrong.append(f"{path} imports {name}: {room} may import {', '.join(sorted(ALLOWED[room])) or 'no room'}")
    return wrong


def sources() -> list[Path]:
    return [p for top in ("study", "analysis") for p in sorted((ROOT / top).rglob("*.py"))]


@pytest.mark.parametrize("file", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(file: Path) -> None:
    assert violations(file.relative_to(ROOT).as_posix(), file.read_text()) == []


def imported_files(path: Path) -> set[Path]:
    """The files of this repository that a file imports, inside functions and for types alone included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {file_of(f"{node.module}.{alias.name}") or file_of(node.module) for alias in node.names}
    return {file for file in found if file is not None}


def file_of(module: str) -> Path | None:
    for file in (ROOT / f"{module.replace('.', '/')}.py", ROOT / module.replace(".", "/") / "__init__.py"):
        if file.exists():
            return file
    return None


def test_no_file_imports_itself_in_a_circle() -> None:
    files = [file for top in ("study", "analysis", "benchmarks") for file in (ROOT / top).rglob("*.py")]
    graph = {file: imported_files(file) for file in files}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(str(file.relative_to(ROOT)) for file in error.args[1]))


def test_the_checker_catches_what_it_should() -> None:
    assert violations("study/trial/trial.py", "import ray")
    assert violations("study/trial/trial.py", "def f():\n    from mlflow import MlflowClient")
    assert violations("study/training/loop.py", "from study.tuning.searcher import StudySearcher")
    assert violations("study/ledger/ledger.py", "from analysis.load import load")
    assert violations("analysis/load.py", "from study.networks import build")
    assert not violations("study/training/loop.py", "from study.networks.guided import record\nimport torch")


def private_attributes(source: str) -> list[str]:
    """What a file reads of objects of others that have declared it private."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]  # fmt: skip


@pytest.mark.parametrize(("room", "door"), [("search", "optuna_internals.py"), ("tuning", "ray_internals.py")])
def test_what_a_library_keeps_private_is_used_in_one_file(room: str, door: str) -> None:
    files = sorted((ROOT / "study" / room).glob("*.py"))
    assert [file.name for file in files if private_attributes(file.read_text())] == [door]


@pytest.mark.parametrize("path", LIGHT)
def test_light_modules_import_nothing_heavy_at_the_top(path: str) -> None:
    top = [node for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {name.split(".")[0] for node in top for name in imports(ast.unparse(node))}
    assert not names & HEAVY


def test_no_rooms_without_a_purpose() -> None:
    assert not [p for p in sources() if p.name in FORBIDDEN_FILES]
    assert not [p.name for p in sources() if len(p.read_text().splitlines()) > 380]


def test_text_names_no_machine_and_no_registry() -> None:
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split()  # fmt: skip
    pattern = re.compile("py" + r"pi\.org|python" + r"hosted|npm" + r"js|(?<![\w.])/wo" + r"rk/|/ro" + "ot/")
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ""} and path.is_file():
            found = pattern.search(path.read_text(errors="replace"))
            assert found is None, f"{name}: {found.group() if found else ''}"
