"""``python -m study.ui``: the ledger in MLflow's pages, with a link to every study as it is best looked at."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from study import names
from study.command import Parser, expanded, refuse_empty, run_command
from study.errors import InputError

_HOST = "127.0.0.1"


def parser() -> argparse.ArgumentParser:
    parse = Parser(
        prog="python -m study.ui",
        description="Browse all studies in MLflow, on this machine alone, until Ctrl-C.",
    )
    parse.add_argument("--storage", default="results", metavar="DIR", help="where results live (default: results)")
    parse.add_argument("--port", type=int, default=5000, help="of the pages (default: 5000)")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Print the links and become the server. Raises :class:`InputError`: no ledger there, the port is taken."""
    args = parser().parse_args(argv)
    refuse_empty(args)
    storage = expanded(args.storage, "--storage")
    file = storage / names.LEDGER_FILE
    if not file.exists():
        raise InputError(f"--storage {args.storage}: there is no {file} yet; run a study first: make study")
    _check_free(args.port)
    from study.ledger import default_tracking_uri, studies, view_path

    uri = default_tracking_uri(storage)
    print("the pages answer in about ten seconds; Ctrl-C ends them")
    for name, experiment in studies(uri).items():
        print(f"  {name}")
        for what, charts in (("trials", False), ("front, curves", True)):
            print(f"    {what:<15}http://{_HOST}:{args.port}{view_path(experiment, charts=charts)}")
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", _HOST, "--port", str(args.port)]
    sys.stdout.flush()
    # Job execution is a feature of other uses of MLflow: four more processes, 1.4 GB.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.execve(sys.executable, [*command, "--backend-store-uri", uri], {**os.environ, **quiet})


def _check_free(port: int) -> None:
    try:
        with socket.create_server((_HOST, port)):
            return
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "not a port"
        raise InputError(f"--port {port}: cannot be used ({reason}); choose another one") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
