"""The password of a cluster's tracking server, derived from Ray's token. Knows no MLflow.

Every machine of a cluster has the token in a file or in its environment. So there is no second secret to make, to
distribute and to lose, and the password is written nowhere.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

USER = "study"


def token() -> str | None:
    """Ray's token, from where Ray itself looks for it; None where this machine has none."""
    if value := os.environ.get("RAY_AUTH_TOKEN"):
        return value.strip()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return file.read_text().strip() or None
    except OSError:
        return None


def derived(purpose: str) -> str | None:
    """A secret for one purpose: HMAC-SHA-256 of the token, in hexadecimal; None without a token."""
    key = token()
    return hmac.new(key.encode(), f"study {purpose}".encode(), hashlib.sha256).hexdigest() if key else None


def offer(tracking_uri: str) -> None:
    """Give MLflow's client in this process the cluster's credentials, unless the user has set some."""
    if not tracking_uri.startswith(("http://", "https://")) or not os.environ.get("STUDY_STORAGE"):
        return
    if os.environ.get("MLFLOW_TRACKING_USERNAME") or os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return
    if password := derived("tracking"):
        os.environ["MLFLOW_TRACKING_USERNAME"] = USER
        os.environ["MLFLOW_TRACKING_PASSWORD"] = password
