"""PNG and SVG files of charts. Matplotlib without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from study.storage.atomic import move_into_place


def pyplot() -> Any:
    """Matplotlib's, without a display; SVG files have text as text and are the same for the same data."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "study"})
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, stem: Path) -> list[Path]:
    """``stem``.png and ``stem``.svg, each put in its place when it is whole; closes the figure."""
    written = []
    for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        file, part = stem.with_suffix(f".{kind}"), stem.with_suffix(f".{kind}.part")
        figure.savefig(part, format=kind, metadata=metadata)
        move_into_place(part, file)
        written.append(file)
    pyplot().close(figure)
    return written
