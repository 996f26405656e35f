"""``python -m analysis.report STUDY --out DIR``: one page that shows what a study found, readable without a network."""

from analysis.report.command import main, parser

__all__ = ["main", "parser"]
