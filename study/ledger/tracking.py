"""Tracking URIs: the SQLite file of one, whether its server answers, its password masked. Knows no MLflow."""

from __future__ import annotations

import contextlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from study import names
from study.errors import LedgerError

_PROBE_SECONDS = 5.0


def default_tracking_uri(storage: Path) -> str:
    """The SQLite store in a results folder."""
    return f"sqlite:///{storage.absolute() / names.LEDGER_FILE}"


def probe(tracking_uri: str) -> None:
    """Raises :class:`LedgerError` where no server answers within 5 s; MLflow itself would retry for minutes.

    Any HTTP answer counts, also a refusal, which MLflow reports later.
    """
    try:
        urllib.request.urlopen(f"{tracking_uri.rstrip('/')}/health", timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise LedgerError(
            f"tracking server {masked(tracking_uri)}: no answer ({first_line(getattr(error, 'reason', error))}); "
            "start it, or leave --tracking-uri out to use mlflow.db in the results folder"
        ) from None


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of a SQLite store; None for a server or another database."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(tracking_uri.removeprefix("sqlite:///").split("?")[0]).absolute()


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it ends with the block, or with the process however that ends."""
    import fcntl

    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def masked(text: str) -> str:
    """A text, such as a tracking URI or a command as it was typed, in which no URI shows its password."""
    return re.sub(r"(//[^/@:\s]*):\S*@", r"\1:***@", text)  # a password may hold slashes and at signs


def first_line(error: object) -> str:
    """The first line of another library's error, at most 200 characters, for a one-line message."""
    return (str(error).strip().splitlines() or [repr(error)])[0][:200]
