"""How every command refuses: one line that says what is wrong, where, and what to do; exit code 2."""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

#: Unicode categories of characters that a terminal obeys or does not show: controls, direction marks, halves of pairs.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_LONGEST_LINE = 1000
_POSITIONAL = ("spec", "study", "folder")  # arguments that are named by their place


class InputError(ValueError):
    """The user's input cannot be used. The message is one line: what is wrong, where, what to do."""


class Parser(argparse.ArgumentParser):
    """Refuses like everything else here, in one line: argparse itself prints its usage first."""

    def error(self, message: str) -> NoReturn:
        """Raises :class:`InputError`."""
        raise InputError(f"{message}; `{self.prog} --help` lists what there is")


def refuse_empty(args: argparse.Namespace, *, allowed: Sequence[str] = ()) -> None:
    """Raises :class:`InputError` for an option given as '': a shell variable that is not set, most often."""
    for name, value in vars(args).items():
        if isinstance(value, str) and not value.strip() and name not in allowed:
            option = name if name in _POSITIONAL else "--" + name.replace("_", "-")
            raise InputError(f"{option}: is empty; give a value or leave it out")


def expanded(text: str | Path, option: str) -> Path:
    """A path whose ``~`` is written out. Raises :class:`InputError` for the home of a user who is not there."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{option} {text}: there is no such user's home here; write the folder out") from None


def one_line(text: str) -> str:
    """One line, its middle left out where it is long, hidden characters as codes: no file's text moves the cursor."""
    words = " ".join(text.split())
    cut = words if len(words) <= _LONGEST_LINE else words[: _LONGEST_LINE // 2] + " … " + words[-_LONGEST_LINE // 2 :]
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN else c for c in cut)


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's ``main`` and turn an :class:`InputError` into one line on stderr and exit code 2.

    Anything else that is raised is a defect of this program and keeps its traceback.
    """
    try:
        return main(argv) or 0
    except InputError as error:
        print("error: " + one_line(str(error)), file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: type the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED
