"""``python -m analysis.export``."""

import sys

from analysis.export import main
from study.command import run_command

sys.exit(run_command(main))
