"""One trial's run in MLflow: written by one attempt at a time, every epoch once."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study import metrics, names
from study.ledger.attempts import check_holder
from study.ledger.metric_writes import NUMBERS_PER_REQUEST, write_numbers
from study.ledger.records import EPOCH_METRIC, DataInput, Number, same_number

REPORT_MS = "ms"  # in a report: when it was made (Unix, ms); not a metric

_TEXTS_PER_REQUEST = 100  # params or tags; MLflow's limit
_END_STATUS = {
    names.COMPLETE: "FINISHED",
    names.STOPPED: "FINISHED",
    names.DIVERGED: "FAILED",
    names.FAILED: "FAILED",
}


class TrialRun:
    """One open run. ``run_id`` is MLflow's, ``attempt`` the token by which this writer holds it.

    Every write first reads whose run it is, and raises :class:`SupersededError` where another attempt took it over.
    """

    def __init__(self, client: Any, run_id: str, attempt: str, start_ms: int = 0) -> None:
        """``start_ms``: when the run was first opened (Unix, ms)."""
        self.run_id = run_id
        self.attempt = attempt
        self._start_ms = start_ms
        self._client = client
        history = client.get_metric_history(run_id, EPOCH_METRIC)
        self._epoch = max((m.step for m in history), default=0)

    def sync(self, history: Sequence[Mapping[str, float]]) -> None:
        """Log the reports of epochs after the last one logged, step = epoch, as many in one request as fit.

        All values of an epoch are in one request, so an epoch is logged wholly or not at all. A value that is not
        finite is stored as NaN: if it were left out, an older value would count as the latest.
        """
        waiting: list[Number] = []
        epoch = self._epoch
        for report in history:
            if int(report["epoch"]) <= epoch:
                continue
            values = _numbers(report, int(report["epoch"]))
            if len(waiting) + len(values) > NUMBERS_PER_REQUEST:
                self._send(waiting, epoch)
                waiting = []
            waiting += values
            epoch = int(report["epoch"])
        if waiting:
            self._send(waiting, epoch)

    def sample(self, samples: Sequence[Mapping[str, float]]) -> None:
        """Log system metrics, step = seconds since the run was first opened; logging the same again changes nothing."""
        numbers: list[Number] = []
        for values in samples:
            second = max(0, int(values[REPORT_MS] - self._start_ms) // 1000)
            numbers += _numbers(values, second, prefix=metrics.SYSTEM_METRICS)
        for i in range(0, len(numbers), NUMBERS_PER_REQUEST):
            write_numbers(self._client, self.run_id, self.attempt, numbers[i : i + NUMBERS_PER_REQUEST])

    def finish(
        self,
        state: str,
        *,
        reason: str = "",
        scores: Mapping[str, float] | None = None,
        files: Sequence[Path] = (),
        logs: Sequence[Path] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End the run: artifacts, scores, tags, then the status; repeating it changes nothing.

        The state is written last, so a run whose writer was killed midway is still running and is finished again.
        ``scores`` that the run has already are not logged twice. ``files`` go to ``CHECKPOINT_ARTIFACTS``, ``logs`` to
        ``LOG_ARTIFACTS``; a file that is there in the same size is not sent. Raises ValueError for a state that is not
        an end.
        """
        if state not in _END_STATUS:
            raise ValueError(f"{state!r} is not the end of a trial; expected one of {', '.join(_END_STATUS)}")
        run = self._held()
        self._upload(files, names.CHECKPOINT_ARTIFACTS)
        self._upload(logs, names.LOG_ARTIFACTS)
        new = {k: v for k, v in (scores or {}).items() if not same_number(run.data.metrics.get(k), v)}
        last = {**(tags or {}), names.TAG_STATE: state}
        if reason:
            last[names.TAG_REASON] = " ".join(reason.split())[:1000]
        write_numbers(self._client, self.run_id, self.attempt, _numbers(new, self._epoch))  # uploads may take minutes
        log_texts(self._client, self.run_id, tags=last)
        if run.info.status != _END_STATUS[state]:
            self._client.set_terminated(self.run_id, _END_STATUS[state])

    def _upload(self, files: Sequence[Path], place: str) -> None:
        """Those files that the artifact store does not have in the same size, straight from where they were written."""
        if not files:
            return
        there = {f.path: f.file_size for f in self._client.list_artifacts(self.run_id, place)}
        for file in files:
            if there.get(f"{place}/{file.name}") != file.stat().st_size:
                self._client.log_artifact(self.run_id, str(file), place)

    def _send(self, numbers: list[Number], epoch: int) -> None:
        write_numbers(self._client, self.run_id, self.attempt, numbers)
        self._epoch = epoch

    def _held(self) -> Any:
        """The run as MLflow has it now. Raises :class:`SupersededError` where it belongs to another attempt."""
        run = self._client.get_run(self.run_id)
        check_holder(self.run_id, run.data.tags.get(names.TAG_ATTEMPT), self.attempt)
        return run


def _numbers(report: Mapping[str, float], step: int, prefix: str = "") -> list[Number]:
    ms = int(report.get(REPORT_MS, time.time() * 1000))
    return [Number(prefix + name, float(value), ms, step) for name, value in report.items() if name != REPORT_MS]


def log_texts(
    client: Any, run_id: str, *, params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None
) -> None:
    """Write params and tags in as few requests as they fit into; none where there are none."""
    from mlflow.entities import Param, RunTag

    texts = [Param(k, v) for k, v in (params or {}).items()]
    marks = [RunTag(k, str(v)) for k, v in (tags or {}).items()]
    for i in range(0, max(len(texts), len(marks)), _TEXTS_PER_REQUEST):
        some = slice(i, i + _TEXTS_PER_REQUEST)
        client.log_batch(run_id, params=texts[some], tags=marks[some])


def log_inputs(client: Any, run: Any, inputs: Sequence[DataInput]) -> None:
    """Those inputs of an MLflow run that it does not have yet, known by their digests."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    there = {i.dataset.digest for i in run.inputs.dataset_inputs} if run.inputs else set()
    new = []
    for i in inputs:
        if i.digest not in there:
            profile = json.dumps({"images": i.images})
            data = Dataset(i.name, i.digest, "local", json.dumps({"uri": i.source}), profile=profile)
            new.append(DatasetInput(data, [InputTag("mlflow.data.context", i.context)]))
    if new:
        client.log_inputs(run.info.run_id, new)
