"""Runs the command."""

import sys

from analysis.report.command import main
from study.command import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
