"""The ledger: one MLflow run per trial and seed, exactly once, whatever is killed and started again.

The only room that knows MLflow, which is imported when a ledger is first used. See docs/decisions/0006-ledger.md.
"""

from study.ledger.attempts import SupersededError
from study.ledger.ledger import Ledger
from study.ledger.presentation import view_path
from study.ledger.records import DataInput, StudyRecord, TrialRecord
from study.ledger.replay import close_session, replay
from study.ledger.run import TrialRun
from study.ledger.server import serve
from study.ledger.store import create_store, studies
from study.ledger.system_metrics import SystemMetricsSampler
from study.ledger.tracking import default_tracking_uri, masked
from study.ledger.writer import TrialWriter

__all__ = [
    "DataInput",
    "Ledger",
    "StudyRecord",
    "SupersededError",
    "SystemMetricsSampler",
    "TrialRecord",
    "TrialRun",
    "TrialWriter",
    "close_session",
    "create_store",
    "default_tracking_uri",
    "masked",
    "replay",
    "serve",
    "studies",
    "view_path",
]
