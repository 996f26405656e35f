"""Writes docs/commands.md and docs/parameters.md from what the program itself declares: ``make docs``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from study.config import PARAMETERS, Parameter
from study.storage.storage import DEFAULT_STORAGE

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
_GENERATED = "Written by `make docs`; a test holds it to the program."
_VALUES = {bool: "`true`, `false`", int: "integer", float: "number", str: "text"}


def parser(command: str) -> argparse.ArgumentParser:
    return importlib.import_module(command).parser()


def commands() -> str:
    """Every command with its arguments, as Markdown."""
    return f"# Commands\n\n{_GENERATED}\n" + "".join(_command(command) for command in COMMANDS)


def _command(command: str) -> str:
    parse = parser(command)
    actions = [action for action in parse._actions if not isinstance(action, argparse._HelpAction)]
    places = "".join(" " + _place(action) for action in actions if not action.option_strings)
    rows = [(_named(action), *_default_and_help(action)) for action in actions]
    table = _table(("argument", "default", "what it does"), rows)
    return f"\n## `{parse.prog}{places}`\n\n{parse.description}\n\n{table}"


def _place(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return {"?": f"[{name}]", "+": f"{name} ..."}.get(str(action.nargs), name)


def _named(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_place(action)}`"
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _default_and_help(action: argparse.Action) -> tuple[str, str]:
    """Of the two places where a default can stand, the help goes first: it says what an unset one means."""
    words = (action.help or "").removesuffix(" (default: %(default)s)").replace("%%", "%")
    in_words = re.search(r" ?\((?:default|None): ([^()]*)\)", words)
    if in_words:
        return in_words[1], words.replace(in_words[0], "")
    if action.required:
        return ("required" if action.option_strings else ""), words
    if action.dest == "storage" and action.default == DEFAULT_STORAGE:
        return "$STUDY_STORAGE, else results", words
    if isinstance(action, argparse.BooleanOptionalAction):
        return f"`{action.option_strings[0 if action.default else 1]}`", words
    return ("" if action.default in (None, False, "") else f"`{action.default}`"), words


def parameters() -> str:
    """Every parameter of a training, as Markdown."""
    rows = [(f"`{p.name}`", _default(p), _values(p), _meaning(p)) for p in PARAMETERS.values()]
    return f"""# Parameters of a training

{_GENERATED}

A specification names them under `space`, where they are searched, or under `fixed`. Those of `data` and `evaluation`
stand under these keys; `epochs` and `rungs` are `max_epochs` and `rungs` of `fidelity`. `python -m study.train` has an
option for each ([commands](commands.md)), and `none` for `null`.

""" + _table(("parameter", "default", "values", "meaning"), rows)


def _default(parameter: Parameter) -> str:
    value = parameter.new_default
    if value is dataclasses.MISSING:
        return ""
    return f"`{json.dumps(value)}`".replace('"', "")


def _values(parameter: Parameter) -> str:
    text = _VALUES[parameter.kind]
    if parameter.choices:
        text = ", ".join(f"`{choice}`" for choice in parameter.choices)
    elif parameter.kind in (int, float):
        high = parameter.high if isinstance(parameter.high, str) else _number(parameter.high)
        text += f" in {'(' if parameter.open_low else '['}{_number(parameter.low)}, {high}]"
    nothing = " or `null`" if parameter.optional and not parameter.with_lambda else ""
    return ("list: " if parameter.is_list else "") + text + nothing


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def _meaning(parameter: Parameter) -> str:
    return parameter.help + ("; only where λ > 0" if parameter.with_lambda else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


PAGES = {"commands.md": commands, "parameters.md": parameters}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page(), encoding="utf-8")
