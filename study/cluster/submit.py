"""On the user's machine: submits a study to the cluster's head, shows its output, and reconnects to it later."""

from __future__ import annotations

import argparse
import base64
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from study.cluster.detached import ATTACHED, ENDED
from study.cluster.place import connection
from study.errors import ClusterError

_CHECKOUT = "~/study"  # where the cluster file puts this checkout
# The line in which a session says where its ledger is.
_TRACKING = re.compile(r"^MLflow\s+http://([0-9a-zA-Z.:-]+):(\d+)$")
# What ssh and Ray print when the connection breaks.
_GIVEN_UP = "Error: Command failed:"
_CONNECTION_LINE = re.compile(r"(Shared c|C)onnection to \S+ closed|\d{4}-\d\d-\d\d [\d:,]+\t\w+ \w+\.py:\d+ -- ")
EXIT_LOST = 1  # the connection is lost, so the study's exit code is not known
_HERE_ONLY = {"cluster", "local", "spec", "name", "help", "plan"}


def head_address(file: Path) -> str | None:
    """The head's address; None where Ray knows of no running head. Asks the provider, which takes seconds."""
    done = _ray("get-head-ip", str(file))
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines[-1] if done.returncode == 0 and lines else None


def options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    """The options to repeat on the head: all that are not at their defaults, but those for this machine alone."""
    told: list[str] = []
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if action.dest in _HERE_ONLY or not action.option_strings or value == action.default:
            continue
        told += [action.option_strings[-1]] if action.nargs == 0 else [f"{action.option_strings[-1]}={value}"]
    return told


def submit(file: Path, name: str, spec: Path, told: Sequence[str]) -> int:
    """Run the study on the head of ``file``'s cluster, or show the session that runs already; its exit code.

    The specification travels with the command, so that the one typed here is the one that runs there. Raises
    :class:`ClusterError` where the head cannot be reached.
    """
    print(f"cluster {file}: asking for its head ...", flush=True)
    address = head_address(file)
    if address is None:
        raise ClusterError(f"--cluster {file}: no head is running; start it with `ray up {file}`, or add --local")
    print(f"running on {address}; closing this terminal does not stop it, the same command shows it again", flush=True)
    there = f"results/.submitted/{name}.yaml"
    packed = base64.b64encode(spec.read_bytes()).decode()
    python = ".venv/bin/python"
    command = shlex.join([python, "-m", "study.run", there, "--name", name, "--local", *told])
    script = (
        f"cd {_CHECKOUT} && mkdir -p results/.submitted && echo {packed} | base64 -d > {there}.part"
        f" && mv {there}.part {there} && exec {python} -m study.cluster.detached {shlex.quote(name)} -- {command}"
    )
    code = _show_on_terminal(file, address, script)
    if code == 0:
        print(f"there    ray exec {file} 'cd {_CHECKOUT} && {python} -m analysis.pareto {name}'", file=sys.stderr)
    return code


def ask(file: Path, module: str, arguments: Sequence[str]) -> int:
    """Run another command of this project on the head and show what it prints; its exit code."""
    address = head_address(file)
    if address is None:
        raise ClusterError(f"--cluster {file}: no head is running; start it with `ray up {file}`, or add --local")
    command = shlex.join([".venv/bin/python", "-m", module, *arguments])
    return _show_on_terminal(file, address, f"cd {_CHECKOUT} && echo '{ATTACHED}new' && {command}; echo '{ENDED}'$?")


def _show_on_terminal(file: Path, address: str, script: str) -> int:
    """Show what ``script`` prints on the head, without what Ray prints about the connection; its exit code."""
    process = subprocess.Popen(
        [_ray_program(), "exec", str(file), script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=_environment(),
    )
    assert process.stdout is not None
    before: list[str] = []
    attached = False
    code: int | None = None
    try:
        for raw in process.stdout:
            line = raw.rstrip("\r\n")
            if attached and line == _GIVEN_UP:
                break  # what follows is the whole command, specification and all
            if attached and _CONNECTION_LINE.match(line):
                continue
            if line.startswith(ATTACHED):
                attached = True
            elif line.startswith(ENDED):
                code = int(line.removeprefix(ENDED))
            elif code is None and attached:
                print(line, flush=True)
                if found := _TRACKING.match(line):
                    print(f"         {tunnel(file, address, found[1], found[2])}", flush=True)
            else:
                before.append(line)
    except KeyboardInterrupt:
        print("\nthe study goes on; the same command shows it again", file=sys.stderr)
        code = 0
    finally:
        process.terminate()
        process.wait()
    if code is None and not attached:
        last = next((line for line in reversed(before) if line.strip()), "no answer")
        raise ClusterError(f"--cluster {file}: the head at {address} cannot be used ({last.strip()[:200]})")
    if code is None:
        print("the connection is lost; the study goes on there, the same command shows it again", file=sys.stderr)
        return EXIT_LOST
    return code


def tunnel(file: Path, address: str, host: str, port: str) -> str:
    """The ssh command that forwards MLflow's page to this machine: from outside, nothing but ssh is open."""
    user, key = connection(file)
    identity = f" -i {key}" if key else ""
    ssh = f"ssh -N -L {port}:{host}:{port}{identity} {user}@{address}"
    return f"from here: {ssh}   then http://127.0.0.1:{port} (python -m study.cluster.password)"


def _ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [_ray_program(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_environment(),
            check=False,
        )
    except OSError as error:
        raise ClusterError(
            f"--cluster: Ray's program cannot be started ({error.strerror}); is `ray` installed?"
        ) from None


def _ray_program() -> str:
    beside = Path(sys.executable).with_name("ray")
    return str(beside) if beside.exists() else "ray"


def _environment() -> dict[str, str]:
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1"}
