"""Starts a cluster's tracking server: on the head's private address, with a password, until the head ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from study import names
from study.errors import ClusterError, LedgerError
from study.ledger.credentials import USER, derived
from study.ledger.store import create_store
from study.ledger.tracking import default_tracking_uri, locked, probe

PORT = 5000
_START_SECONDS = 120.0
_INI = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
grant_default_workspace_access = false
auth_cache_ttl_seconds = 60
"""


def serve(storage: Path, host: str) -> str:
    """The URI of the tracking server at ``host`` for the ledger in ``storage``; it is started where none answers.

    It listens on ``host`` alone, a private address, asks for the password that is derived from the cluster's token, and
    outlives this process. Raises :class:`ClusterError` where there is no token,
    :class:`LedgerError` where the server does not answer in time.
    """
    uri = f"http://{host}:{PORT}"
    folder = Path.home() / ".study" / "tracking"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(folder / "lock"):  # two studies may start at once
        if _answers(uri):
            return uri
        password = derived("tracking")
        if password is None:
            raise ClusterError(
                "tracking server: this cluster's machine has no token (~/.ray/auth_token); make one with "
                "`ray get-auth-token --generate` and bring the cluster up again, or name a server with --tracking-uri"
            )
        create_store(default_tracking_uri(storage))
        with (folder / "alive").open("w") as alive, contextlib.suppress(BlockingIOError):
            # The server's processes hold this lock, so a server that is being restarted is not started twice.
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _start(storage, host, folder, password, alive.fileno())
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(uri):
            if time.monotonic() > deadline:
                raise LedgerError(f"tracking server {uri}: it does not come up; its log is {folder / 'log'}")
            time.sleep(0.5)
    return uri


def _answers(uri: str) -> bool:
    try:
        probe(uri)
    except LedgerError:
        return False
    return True


def _start(storage: Path, host: str, folder: Path, password: str, alive: int) -> None:
    (folder / "users.db").unlink(missing_ok=True)  # it holds the hash of a password that may be of an earlier token
    ini = folder / "auth.ini"
    ini.write_text(_INI.format(folder=folder, user=USER))
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "log").open("ab") as log:
        subprocess.Popen(
            [
                # Restarted when it dies; until it answers, writers keep journals.
                *("bash", "-c", 'while :; do "$@"; sleep 5; done', "tracking-server"),
                *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"),
                *("--host", host, "--port", str(PORT)),
                *("--backend-store-uri", f"sqlite:///{storage / names.LEDGER_FILE}"),
                *("--artifacts-destination", (storage / "artifacts").as_uri()),
            ],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[alive],
        )
