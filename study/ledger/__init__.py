"""The ledger: one MLflow run per trial and seed, exactly once, whatever is killed and started again.

The only room that knows MLflow, which is imported when a ledger is first used. See docs/decisions/0006-ledger.md.
"""

from study.ledger.ledger import DataInput, Ledger
from study.ledger.metric_writes import SupersededError
from study.ledger.presentation import view_path
from study.ledger.records import StudyRecord, TrialRecord
from study.ledger.run import TrialRun
from study.ledger.server import serve
from study.ledger.store import create_store, studies
from study.ledger.system_metrics import MachineSampler
from study.ledger.tracking import default_tracking_uri, masked
from study.ledger.writer import TrialBook, replay, settle

__all__ = [
    "DataInput",
    "Ledger",
    "MachineSampler",
    "StudyRecord",
    "SupersededError",
    "TrialBook",
    "TrialRecord",
    "TrialRun",
    "create_store",
    "default_tracking_uri",
    "masked",
    "replay",
    "serve",
    "settle",
    "studies",
    "view_path",
]
