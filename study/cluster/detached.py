"""On the head: runs a study's session in the background and shows its output to any number of terminals.

``python -m study.cluster.detached NAME -- COMMAND ...`` starts ``COMMAND`` unless the study ``NAME`` runs already, then
shows what it prints until it ends. The session goes on when the terminal is closed.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

MARK = "[study] "  # begins a line that is meant for `study.cluster.submit`, not for a person
ENDED = MARK + "ended "  # + exit code
ATTACHED = MARK + "attached "  # + new | running
_POLL_SECONDS = 0.3
_LAST_LINES = 30  # of a running session, shown to a terminal that joins later


def folder_of(name: str) -> Path:
    """Where a session keeps its lock, log, command and exit code: on the head's own disk, gone with the head."""
    return Path.home() / ".study" / "sessions" / name


def start(name: str, command: Sequence[str]) -> bool:
    """Start ``command`` in the background, its output in the session's log; False where a session is running.

    The session's own processes hold its lock, so it is free exactly when all of them have ended.
    """
    folder = folder_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        (folder / "exit").unlink(missing_ok=True)
        (folder / "command").write_text(shlex.join(command) + "\n")
        note = shlex.quote(str(folder / "exit"))
        script = f'"$@"; echo $? > {note}.part; mv {note}.part {note}'
        with (folder / "log").open("wb") as log:
            subprocess.Popen(
                ["bash", "-c", script, "session", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno()],
                env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
            )
    return True


def running(name: str) -> bool:
    """Whether a session of the study holds its lock on this machine."""
    try:
        with (folder_of(name) / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def follow(name: str, out: TextIO, *, from_start: bool) -> int:
    """Copy the session's log to ``out`` until the session is over; its exit code (1 where it was killed)."""
    folder = folder_of(name)
    with (folder / "log").open(encoding="utf-8", errors="replace") as log:
        if not from_start:
            out.writelines(log.readlines()[-_LAST_LINES:])
        while True:
            alive = running(name)
            text = log.read()
            if text:
                out.write(text)
                out.flush()
            elif not alive:
                break
            else:
                time.sleep(_POLL_SECONDS)
    try:
        return int((folder / "exit").read_text())
    except (OSError, ValueError):
        return 1


def main(argv: Sequence[str]) -> int:
    name, separator, *command = argv
    assert separator == "--" and command
    started = start(name, command)
    print(ATTACHED + ("new" if started else "running"), flush=True)
    if not started and (folder_of(name) / "command").read_text().strip() != shlex.join(command):
        print(f"study {name} is running already, with: {(folder_of(name) / 'command').read_text().strip()}")
    try:
        code = follow(name, sys.stdout, from_start=started)
    except KeyboardInterrupt:
        print("\nthe study goes on; the same command shows it again", flush=True)
        code = 0
    print(f"{ENDED}{code}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
