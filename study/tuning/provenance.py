"""What made a result: tags with the versions of this code and of the packages that compute."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from study import __version__, names

_PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow", "numpy")


def version_tags() -> dict[str, str]:
    """Of the machine that runs the session; its workers run the same."""
    versions = {"python": platform.python_version(), **{package: metadata.version(package) for package in _PACKAGES}}
    return {names.TAG_CODE_VERSION: code_version(), **{f"version.{name}": v for name, v in versions.items()}}


def code_version() -> str:
    """The package's version and, in a checkout, the commit (with ``-dirty`` for uncommitted changes)."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{described.stdout.strip()}"
