"""What a person sees while a study runs: a live table on a terminal, a line per report elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from study import metrics, names
from study.config import TrialConfig
from study.tuning.job import Job

_ELSEWHERE = "its machine is lost, it goes on elsewhere"
_SHOWN_TRIALS = 12  # a screenful, the newest


@dataclass
class _Row:
    number: int
    config: TrialConfig
    epoch: int = 0
    state: str = names.RUNNING
    reason: str = ""
    accuracy: float | None = None
    faithfulness: float | None = None
    seconds: list[float] = field(default_factory=list)


def _row_of(trial: Any) -> _Row:
    job = Job.of(trial.config)
    return _Row(job.number, job.trial.config)


def describe(config: TrialConfig) -> str:
    """A trial's configuration in a few words."""
    error = f" {config.reg_error}" if config.reg_weight > 0 else ""
    return f"{config.network}  λ {config.reg_weight:.3g}{error}  lr {config.lr:.3g}"


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


class StudyProgress(tune.Callback):
    """Shows trial, epoch, accuracy and faithfulness (in their units), state, front size and time left.

    Args:
        total: trials that this session will end.
        concurrent: how many run at once.
        front_size: the number of non-dominated complete trials so far.
        time_budget: seconds after which the session ends, or None.
        lost: whether a trial (Ray's id) that failed did so with its whole machine.
    """

    def __init__(
        self,
        *,
        total: int,
        concurrent: int,
        front_size: Callable[[], int],
        time_budget: float | None,
        console: Console,
        lost: Callable[[str], bool] = lambda trial_id: False,
    ) -> None:
        self._total = total
        self._concurrent = concurrent
        self._front_size = front_size
        self._time_budget = time_budget
        self._console = console
        self._lost = lost
        self._start = time.monotonic()
        self._rows: dict[str, _Row] = {}
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._render)

    def __getstate__(self) -> dict[str, object]:
        """Ray pickles its callbacks with its snapshot; a screen cannot be restored."""
        return {}

    def __enter__(self) -> StudyProgress:
        self._console.print("starting workers (the first report takes about 20 s) ...")
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self._rows:
            self._rows[trial.trial_id] = _row_of(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        row = self._rows.setdefault(trial.trial_id, _row_of(trial))
        report = result.get("report", {})
        row.epoch, row.state, row.reason = max(row.epoch, result["epoch"]), result["state"], result["reason"]
        row.accuracy = report.get(metrics.ACCURACY.ledger_name, row.accuracy)
        row.faithfulness = report.get(metrics.FAITHFULNESS.ledger_name, row.faithfulness)
        if metrics.EPOCH_SECONDS in report:
            row.seconds.append(report[metrics.EPOCH_SECONDS] + report[metrics.EVALUATION_SECONDS])
        self._line(row)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if row := self._rows.get(trial.trial_id):
            lost = self._lost(trial.trial_id)
            row.reason = _ELSEWHERE if lost else "crashed, it goes on from its checkpoint"
            self._line(row)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._rows.setdefault(trial.trial_id, _row_of(trial))
        if self._lost(trial.trial_id):  # it comes back as another trial of Ray's
            row.reason = _ELSEWHERE
            self._line(row)
            del self._rows[trial.trial_id]
            return
        row.state, row.reason = names.FAILED, "crashed more often than it may be retried"
        self._line(row)

    def seconds_left(self) -> float | None:
        """Estimate from the epochs seen so far; None before the first report."""
        seconds = [s for row in self._rows.values() for s in row.seconds]
        if not seconds:
            return None
        rows = list(self._rows.values())
        epochs = max(row.config.epochs for row in rows)
        left = sum(row.config.epochs - row.epoch for row in rows if row.state == names.RUNNING)
        left += epochs * max(0, self._total - len(rows))
        estimate = left * sum(seconds) / len(seconds) / self._concurrent
        if self._time_budget is not None:
            estimate = min(estimate, self._time_budget - (time.monotonic() - self._start))
        return estimate

    def _status(self) -> str:
        over = sum(row.state != names.RUNNING for row in self._rows.values())
        left = self.seconds_left()
        eta = "estimating" if left is None else clock(left)
        return f"{over}/{self._total} trials done · front {self._front_size()} · ETA {eta}"

    def _line(self, row: _Row) -> None:
        if self._console.is_terminal:
            return
        tail = f"  ({row.reason})" if row.reason else ""
        self._console.print(
            f"trial {row.number}  {describe(row.config)}  epoch {row.epoch}/{row.config.epochs}  "
            f"accuracy {_number(row.accuracy, '.1f')}  faithfulness {_number(row.faithfulness, '+.1f')}  "
            f"{row.state}{tail} · {self._status()}",
            soft_wrap=True,
            highlight=False,
        )

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        scores = (f"{m.name}\n{m.unit}" for m in (metrics.ACCURACY, metrics.FAITHFULNESS))
        for name in ("trial", "network", "λ", "lr", "epoch", *scores, "state"):
            table.add_column(name, justify="left" if name in ("network", "state") else "right")
        rows = sorted(self._rows.values(), key=lambda row: row.number)
        if len(rows) > _SHOWN_TRIALS:
            rows = [r for r in rows if r.state == names.RUNNING or r in rows[-_SHOWN_TRIALS:]]
        for row in rows:
            table.add_row(
                str(row.number),
                row.config.network,
                f"{row.config.reg_weight:.3g}",
                f"{row.config.lr:.3g}",
                f"{row.epoch}/{row.config.epochs}",
                _number(row.accuracy, ".1f"),
                _number(row.faithfulness, "+.1f"),
                row.state + (f" ({row.reason})" if row.reason else ""),
                style="dim" if row.state != names.RUNNING else None,
            )
        return Group(table, Text(self._status(), style="bold"))
