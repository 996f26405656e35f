"""The ledger: one MLflow run per trial and seed, exactly once, whatever is killed and started again.

One MLflow experiment per study; a parent run that carries the specification; one nested run per trial and seed,
found again by its tag ``TAG_KEY``. MLflow is imported when the ledger is first used, never before, and only through
``MlflowClient``: no global tracking URI, no active run. See docs/decisions/0006-ledger.md.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from study import metrics
from study.errors import InputError
from study.records import StudyRecord, TrialRecord, flatten, read_run, run_name, same_number
from study.tracking import default_tracking_uri, first_line, locked, probe, shown, sqlite_path

__all__ = ["Ledger", "StudyRecord", "TrialRecord", "TrialRun", "create_store", "default_tracking_uri"]

EPOCH_METRIC = "epoch"  # logged with every report: its latest value is the last epoch that the ledger holds
TAG_SPEC = "study.spec"  # the specification as JSON, in parts: study.spec.00, study.spec.01, ...
TAG_TEST_OPENING = "study.test_opening"  # study.test_opening/WHEN: the test split was looked at, and why

_TAG_CHARACTERS = 4000  # per tag; every MLflow server takes 5000
_BATCH = 100  # params and tags per request, MLflow's limit
_PAGE = 1000  # runs per search request
_END_STATUS = {
    metrics.COMPLETE: "FINISHED",
    metrics.STOPPED: "FINISHED",
    metrics.DIVERGED: "FAILED",
    metrics.FAILED: "FAILED",
}
# A study is nobody's telemetry, and its terminal belongs to its own progress.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def create_store(tracking_uri: str) -> None:
    """Make sure that the store exists and answers, before several processes open it.

    Processes that open a SQLite store that does not exist yet race through its migrations and fail. So it is made
    here, under a file lock, beside its place, and renamed into it: a kill midway leaves no half-made store. Raises
    :class:`InputError`: server unreachable within 5 s, folder not writable, not an MLflow store.
    """
    path = sqlite_path(tracking_uri)
    if path is None:
        _connect(tracking_uri)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(path.name + ".lock")):
            if not path.exists() or path.stat().st_size == 0:
                part = path.with_name(path.name + ".part")
                part.unlink(missing_ok=True)
                _connect(f"sqlite:///{part}")
                os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"ledger {path}: cannot be created ({error.strerror}); choose another --storage or --tracking-uri"
        ) from None
    _connect(tracking_uri)


class Ledger:
    """One study's books at one MLflow tracking URI. Making one touches nothing; it can be pickled."""

    def __init__(self, tracking_uri: str, study: str) -> None:
        self.tracking_uri = tracking_uri
        self.study = study
        self._client_: Any = None
        self._experiment: str | None = None
        self._parent: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client_": None}  # a connection does not travel to another process

    @property
    def _client(self) -> Any:
        if self._client_ is None:
            self._client_ = _connect(self.tracking_uri)
        return self._client_

    def open_study(
        self, *, fingerprint: str, spec: Mapping[str, Any], tags: Mapping[str, str], artifact_location: str | None
    ) -> str:
        """Find or create the experiment and its parent run, bring spec and tags up to date; the parent's run id.

        Raises :class:`InputError` where the name belongs to a study with another fingerprint.
        """
        create_store(self.tracking_uri)
        self._find_or_create_experiment(artifact_location)
        parent = self._find_parent()
        if parent is not None and parent.data.tags.get(metrics.TAG_FINGERPRINT) != fingerprint:
            raise InputError(
                f"study {self.study!r} exists in the ledger {shown(self.tracking_uri)} with another specification; "
                "choose another --name or --tracking-uri"
            )
        identity = {
            metrics.TAG_ROLE: "study",
            metrics.TAG_STUDY: self.study,
            metrics.TAG_FINGERPRINT: fingerprint,
        }
        if parent is None:
            parent = self._create_once(identity, f"study {self.study}", f"tags.`{metrics.TAG_ROLE}` = 'study'")
        self._parent = parent.info.run_id
        self._client.update_run(self._parent, "RUNNING")
        text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        parts = [text[i : i + _TAG_CHARACTERS] for i in range(0, len(text), _TAG_CHARACTERS)]
        _log(self._client, self._parent, tags={**tags, **{f"{TAG_SPEC}.{i:02d}": part for i, part in enumerate(parts)}})
        for stale in (t for t in parent.data.tags if t.startswith(TAG_SPEC) and int(t[-2:]) >= len(parts)):
            self._client.delete_tag(self._parent, stale)
        return str(self._parent)

    def close_study(self, *, complete: bool) -> None:
        """End the study's own run: finished, or killed where trials are left for the next session."""
        self._client.set_terminated(self._parent_id(), "FINISHED" if complete else "KILLED")

    def open_trial(self, trial: int, seed: int, params: Mapping[str, Any], tags: Mapping[str, str]) -> TrialRun:
        """The run of this trial and seed: found again and set back to RUNNING, else created under the parent.

        ``params`` may be nested; what a run already holds is left as it is, since MLflow's params never change.
        """
        flat = flatten(params)
        key = f"{self.study}/{trial}/{seed}"
        tags = {
            **tags,
            metrics.TAG_KEY: key,
            metrics.TAG_STUDY: self.study,
            metrics.TAG_ROLE: "trial",
            metrics.TAG_TRIAL: str(trial),
            metrics.TAG_SEED: str(seed),
            metrics.TAG_STATE: metrics.RUNNING,
            "mlflow.parentRunId": self._parent_id(),
        }
        matching = f"tags.`{metrics.TAG_KEY}` = '{key}'"
        found = self._search(matching, limit=1)
        run = found[0] if found else self._create_once(tags, run_name(trial, params), matching)
        if found:
            self._client.update_run(run.info.run_id, status="RUNNING")
            if metrics.TAG_REASON in run.data.tags:
                self._client.delete_tag(run.info.run_id, metrics.TAG_REASON)
        missing = {k: v for k, v in flat.items() if k not in run.data.params}
        _log(self._client, run.info.run_id, params=missing, tags=tags if found else {})
        return TrialRun(self._client, run.info.run_id)

    def record(self) -> StudyRecord:
        """The study's own run. Raises :class:`InputError` where the ledger has no such study."""
        run = self._client.get_run(self._parent_id())
        parts = sorted((k, v) for k, v in run.data.tags.items() if k.startswith(TAG_SPEC + "."))
        try:
            spec = json.loads("".join(v for _, v in parts))
        except ValueError:
            raise InputError(
                f"study {self.study!r}: its specification in the ledger {shown(self.tracking_uri)} cannot be read; "
                "type its study.run command again to restore it"
            ) from None
        return StudyRecord(run.info.run_id, spec, run.data.tags.get(metrics.TAG_FINGERPRINT, ""), dict(run.data.tags))

    def trials(self) -> list[TrialRecord]:
        """Every trial of the study, by trial and seed. Raises :class:`InputError` for an unknown study."""
        self._parent_id()
        runs = self._search(f"tags.`{metrics.TAG_ROLE}` = 'trial'")
        return sorted((read_run(run) for run in runs), key=lambda r: (r.trial, r.seed))

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """All values of one metric as (epoch, value), by epoch; empty where it was never logged."""
        return sorted((m.step, m.value) for m in self._client.get_metric_history(run_id, metric))

    def download(self, run_id: str, artifact_path: str, dst: Path) -> Path:
        """Copy one artifact into the folder ``dst``; its path there. Raises :class:`InputError` where there is none."""
        dst.mkdir(parents=True, exist_ok=True)
        try:
            return Path(self._client.download_artifacts(run_id, artifact_path, str(dst)))
        except Exception as error:
            raise InputError(
                f"study {self.study!r}: artifact {artifact_path} of run {run_id} cannot be had ({first_line(error)}); "
                "is its artifact folder reachable from this machine?"
            ) from None

    def log_test_opening(self, run_id: str, purpose: str, when: str) -> int:
        """Note on the trial and on the study that the test split is opened; how often that was so far.

        ``when`` is an ISO 8601 time. Selection by test scores shows as a count above one per trial.
        """
        parent = self._parent_id()
        place = f"{TAG_TEST_OPENING}/{re.sub('[^0-9A-Za-z:.-]', '_', when)}"  # a tag's name takes no plus sign
        self._client.set_tag(run_id, place, f"{when} {purpose}")
        self._client.set_tag(parent, f"{place}/{run_id[:8]}", f"{when} run {run_id} {purpose}")
        return sum(tag.startswith(TAG_TEST_OPENING + "/") for tag in self._client.get_run(parent).data.tags)

    def _find_or_create_experiment(self, artifact_location: str | None) -> None:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(self.study)
        if experiment is None:
            path = sqlite_path(self.tracking_uri)
            if artifact_location is None and path is not None:  # MLflow would take the current folder
                artifact_location = (path.parent / self.study / "artifacts").as_uri()
            try:
                self._experiment = self._client.create_experiment(self.study, artifact_location=artifact_location)
                return
            except MlflowException:
                experiment = self._client.get_experiment_by_name(self.study)  # another process was first
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise InputError(f"study {self.study!r} is deleted in MLflow; restore it there or choose another --name")
        self._experiment = experiment.experiment_id

    def _find_parent(self) -> Any:
        runs = self._search(f"tags.`{metrics.TAG_ROLE}` = 'study'", limit=1)
        return runs[0] if runs else None

    def _parent_id(self) -> str:
        if self._parent is None:
            experiment = self._client.get_experiment_by_name(self.study)
            if experiment is not None and experiment.lifecycle_stage == "active":
                self._experiment = experiment.experiment_id
                parent = self._find_parent()
                self._parent = parent.info.run_id if parent else None
        if self._parent is None:
            names = sorted(e.name for e in self._client.search_experiments() if e.name != "Default")
            there = f"there are {', '.join(names)}" if names else "it holds no study yet; start one with study.run"
            raise InputError(f"study {self.study!r} is not in the ledger {shown(self.tracking_uri)}; {there}")
        return self._parent

    def _create_once(self, tags: Mapping[str, str], name: str, matching: str) -> Any:
        """Create a run; where another process created it at the same time, both go on with the older one."""
        run = self._client.create_run(self._experiment, tags=dict(tags), run_name=name)
        first = self._search(matching, limit=1)[0]
        if first.info.run_id != run.info.run_id:
            self._client.delete_run(run.info.run_id)
        return first

    def _search(self, matching: str, limit: int | None = None) -> list[Any]:
        """Runs of the study, the oldest first."""
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                matching,
                max_results=limit or _PAGE,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            runs += page
            token = page.token
            if not token or limit:
                return runs


class TrialRun:
    """One open run. ``run_id`` is MLflow's."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        history = client.get_metric_history(run_id, EPOCH_METRIC)
        self._epoch = max((m.step for m in history), default=0)

    def sync(self, history: Sequence[Mapping[str, float]]) -> None:
        """Log the reports of epochs after the last one logged: one request each, step = epoch.

        MLflow clips infinities to a number that reads like a result, and a value left out would leave an older one
        standing as the last; so every value that is not finite is stored as NaN.
        """
        for report in history:
            epoch = int(report["epoch"])
            if epoch > self._epoch:
                _log(self._client, self.run_id, values={**report, EPOCH_METRIC: epoch}, step=epoch)
                self._epoch = epoch

    def finish(
        self,
        state: str,
        *,
        reason: str = "",
        scores: Mapping[str, float] | None = None,
        files: Sequence[Path] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """End the run: artifacts, scores, tags, then the status; the same again changes nothing.

        The state is written last: a run that was killed midway is still running and is finished again. ``scores``
        that the history already holds are not logged twice. ``files`` go to ``CHECKPOINT_ARTIFACTS``; one that is
        there with the same size is left. Raises ValueError for a state that is no end.
        """
        if state not in _END_STATUS:
            raise ValueError(f"{state!r} is not the end of a trial; expected one of {', '.join(_END_STATUS)}")
        there = {f.path: f.file_size for f in self._client.list_artifacts(self.run_id, metrics.CHECKPOINT_ARTIFACTS)}
        for file in files:
            if there.get(f"{metrics.CHECKPOINT_ARTIFACTS}/{file.name}") != file.stat().st_size:
                self._client.log_artifact(self.run_id, str(file), metrics.CHECKPOINT_ARTIFACTS)
        run = self._client.get_run(self.run_id)
        new = {k: v for k, v in (scores or {}).items() if not same_number(run.data.metrics.get(k), v)}
        _log(self._client, self.run_id, values=new, step=self._epoch)
        last = {**(tags or {}), metrics.TAG_STATE: state}
        if reason:
            last[metrics.TAG_REASON] = " ".join(reason.split())[:1000]
        _log(self._client, self.run_id, tags=last)
        if run.info.status != _END_STATUS[state]:
            self._client.set_terminated(self.run_id, _END_STATUS[state])


def _connect(tracking_uri: str) -> Any:
    """An ``MlflowClient`` whose store is known to answer. Raises :class:`InputError`."""
    scheme = urlsplit(tracking_uri).scheme
    if scheme in ("", "file"):
        raise InputError(
            f"tracking URI {tracking_uri!r}: MLflow has no file store any more; use sqlite:///PATH/mlflow.db"
        )
    if scheme in ("http", "https"):
        probe(tracking_uri)
    path = sqlite_path(tracking_uri)
    if path is not None and path.suffix != ".part" and not path.exists():  # MLflow would create it
        raise InputError(f"ledger {path}: there is none; check --storage or --tracking-uri, or start a study first")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise InputError(
            f"ledger {shown(tracking_uri)}: MLflow cannot open it ({first_line(error)}); "
            "check --tracking-uri, or move the file away to start a new ledger"
        ) from None
    return client


def _log(
    client: Any,
    run_id: str,
    *,
    values: Mapping[str, float] | None = None,
    step: int = 0,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """One request for what fits into one."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    numbers = [Metric(k, v if math.isfinite(v) else math.nan, now, step) for k, v in (values or {}).items()]
    texts = [Param(k, v) for k, v in (params or {}).items()]
    marks = [RunTag(k, str(v)) for k, v in (tags or {}).items()]
    for i in range(0, max(len(numbers), len(texts), len(marks)), _BATCH):
        part = slice(i, i + _BATCH)
        client.log_batch(run_id, metrics=numbers[part], params=texts[part], tags=marks[part])
