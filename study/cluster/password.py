"""``python -m study.cluster.password``: user and password of a cluster's MLflow page."""

from __future__ import annotations

import sys

from study.command import run_command
from study.errors import ClusterError
from study.ledger.credentials import USER, derived


def main(argv: object = None) -> int:
    """Print user and password, on a machine that holds the cluster's token: where `ray up` was typed, or the head."""
    password = derived("tracking")
    if password is None:
        raise ClusterError("no token of a cluster (~/.ray/auth_token) is here; type this where `ray up` was typed")
    print(f"user {USER}   password {password}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
