"""What every command shares: it refuses in one line that says what is wrong, where, and what to do; exit code 2."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from study.errors import InputError, StudyError, one_line

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # as a shell shows a program that SIGPIPE ended

_POSITIONAL = ("spec", "study", "folder")  # arguments that are named by their place


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
            raise InputError("is empty; give a value or leave it out", key=option)


def expanded(text: str | Path, option: str) -> Path:
    """A path whose ``~`` is written out. Raises :class:`InputError` for the home of a user who is not there."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError("there is no such user's home here; write the folder out", key=f"{option} {text}") from None


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's ``main`` and turn a :class:`StudyError` into one line on stderr and exit code 2.

    Where nobody reads the output any more (``| head``), the command ends without a word. Anything else that is raised
    is a defect of this program and keeps its traceback.
    """
    try:
        try:
            return main(argv) or 0
        finally:
            sys.stdout.flush()  # here, where a closed pipe is noticed, and not when Python ends
    except BrokenPipeError:
        if not _is_closed_pipe(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is flushed when Python ends
        return EXIT_CLOSED_PIPE
    except StudyError as error:
        print("error: " + one_line(str(error)), file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: type the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED


def _is_closed_pipe(descriptor: int) -> bool:
    """Whether a pipe's reader has gone. A broken connection to a server raises the same error."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
