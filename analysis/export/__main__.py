"""``python -m analysis.export``."""

import sys

from analysis.export import main
from study.errors import run_command

sys.exit(run_command(main))
