"""A page as Debian's Chromium shows it, without a window."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest


def require_chromium() -> str:
    """Its path; skips the test where it is not installed."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs chromium: apt-get install chromium")
    return found


def text_of(url: str, folder: Path, *, seconds: int = 20, picture: Path | None = None) -> str:
    """All text of the page at ``url`` once ``seconds`` of the page's own time are over. ``folder``: for a profile."""
    command = [require_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={folder / 'chromium'}", "--window-size=1900,1100"]
    command += [f"--virtual-time-budget={1000 * seconds}"]
    command += [f"--screenshot={picture}"] if picture else []
    done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=100, check=True)
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", done.stdout, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())
