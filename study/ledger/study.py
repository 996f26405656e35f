"""The ledger: one MLflow run per trial and seed, exactly once, whatever is killed and started again.

One MLflow experiment per study; a parent run that carries the specification; one nested run per trial and seed,
found again by its tag ``TAG_KEY``. MLflow is imported when the ledger is first used, never before, and only through
``MlflowClient``: no global tracking URI, no active run. See docs/decisions/0006-ledger.md.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study import names
from study.errors import ArtifactError, InputError
from study.ledger import presentation
from study.ledger.attempts import new_attempt
from study.ledger.bulk import BulkReader
from study.ledger.numbers import SupersededError
from study.ledger.records import StudyRecord, TrialRecord, flatten, read_run, run_name
from study.ledger.rescored import replace_scores
from study.ledger.run import TrialRun, log_texts
from study.ledger.store import check_artifact_store, connect, create_store
from study.ledger.tracking import first_line, shown, sqlite_path

TAG_SPEC = "study.spec"  # the specification as JSON, in parts: study.spec.00, study.spec.01, ...
TAG_TEST_OPENING = "study.test_opening"  # study.test_opening/WHEN: the test split was looked at, and why

_TAG_CHARACTERS = 4000  # per tag; every MLflow server takes 5000
_PAGE = 1000  # runs per search request
_STAND_BACK = 0.1, 1.0  # seconds before a run that two processes made at once is looked for again


@dataclass(frozen=True)
class DataInput:
    """What a run used, for MLflow's list of inputs: ``context`` is training, validation or specification."""

    name: str
    digest: str
    source: str
    context: str
    images: int | None = None


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
            self._client_ = connect(self.tracking_uri)
        return self._client_

    def open_study(
        self, *, fingerprint: str, spec: Mapping[str, Any], tags: Mapping[str, str], artifact_location: str | None
    ) -> str:
        """Find or create the experiment and its parent run, bring spec and tags up to date; the parent's run id.

        Raises :class:`InputError` where the name belongs to a study with another fingerprint.
        """
        check_artifact_store(artifact_location)
        create_store(self.tracking_uri)
        self._find_or_create_experiment(artifact_location)
        parent = self._find_parent()
        if parent is not None and parent.data.tags.get(names.TAG_FINGERPRINT) != fingerprint:
            raise InputError(
                f"study {self.study!r} exists in the ledger {shown(self.tracking_uri)} with another specification; "
                "choose another --name or --tracking-uri"
            )
        identity = {
            names.TAG_ROLE: "study",
            names.TAG_STUDY: self.study,
            names.TAG_FINGERPRINT: fingerprint,
        }
        if parent is None:
            parent = self._create_once(identity, f"study {self.study}", f"tags.`{names.TAG_ROLE}` = 'study'")
        self._parent = parent.info.run_id
        self._client.update_run(self._parent, "RUNNING")
        text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        whole = DataInput("specification", fingerprint[:32], names.STUDY_FILE, "specification")
        self._log_inputs(self._client.get_run(self._parent), [whole])
        self._present(spec)
        parts = [text[i : i + _TAG_CHARACTERS] for i in range(0, len(text), _TAG_CHARACTERS)]
        log_texts(
            self._client, self._parent, tags={**tags, **{f"{TAG_SPEC}.{i:02d}": part for i, part in enumerate(parts)}}
        )
        if presentation.NOTE not in parent.data.tags:
            self._client.set_tag(self._parent, presentation.NOTE, presentation.study_note(self.study, spec))
        for stale in (t for t in parent.data.tags if t.startswith(TAG_SPEC) and int(t[-2:]) >= len(parts)):
            self._client.delete_tag(self._parent, stale)
        return str(self._parent)

    def _present(self, spec: Mapping[str, Any]) -> None:
        """Description and view of the experiment; what is there already, edited or not, stays."""
        there = self._client.get_experiment(self._experiment).tags
        tags = presentation.experiment_tags(self.study, str(self._experiment), spec, int(time.time() * 1000))
        for name, value in tags.items():
            if name not in there:
                self._client.set_experiment_tag(self._experiment, name, value)

    def close_study(self, *, complete: bool) -> None:
        """End the study's own run: finished, or killed where trials are left for the next session."""
        self._client.set_terminated(self._parent_id(), "FINISHED" if complete else "KILLED")

    def open_trial(
        self,
        trial: int,
        seed: int,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        *,
        inputs: Sequence[DataInput] = (),
        attempt: str | None = None,
    ) -> TrialRun:
        """The run of this trial and seed: found again and set back to RUNNING, else created under the parent.

        From now on it belongs to ``attempt`` (None: a new one); what earlier attempts still write is refused. Raises
        :class:`SupersededError` where a later attempt has it. ``params`` may be nested; what a run already holds is
        left as it is, since MLflow's params never change.
        """
        flat, parent = flatten(params), self._parent_id()
        key = f"{self.study}/{trial}/{seed}"
        matching = f"tags.`{names.TAG_KEY}` = '{key}'"
        found = self._search(matching, limit=1)
        holder = found[0].data.tags.get(names.TAG_ATTEMPT, "") if found else ""
        attempt = attempt or new_attempt(holder)
        if holder > attempt:
            raise SupersededError(f"trial {trial} with seed {seed} belongs to attempt {holder}, later than {attempt}")
        tags = {
            **tags,
            names.TAG_KEY: key,
            names.TAG_STUDY: self.study,
            names.TAG_ROLE: "trial",
            names.TAG_TRIAL: str(trial),
            names.TAG_SEED: str(seed),
            names.TAG_STATE: names.RUNNING,
            names.TAG_ATTEMPT: attempt,
            "mlflow.parentRunId": parent,
        }
        if not found or presentation.NOTE not in found[0].data.tags:
            tags[presentation.NOTE] = presentation.trial_note(trial, params)
        run = found[0] if found else self._create_once(tags, run_name(trial, params), matching)
        run_id = run.info.run_id
        if run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        if names.TAG_REASON in run.data.tags:
            self._client.delete_tag(run_id, names.TAG_REASON)
        if run.data.tags.get(names.TAG_ATTEMPT) == attempt:
            tags = {}  # they were written when it was created
        log_texts(self._client, run_id, params={k: v for k, v in flat.items() if k not in run.data.params}, tags=tags)
        self._log_inputs(run, inputs)
        return TrialRun(self._client, run_id, attempt, run.info.start_time)

    def record(self) -> StudyRecord:
        """The study's own run. Raises :class:`InputError` where the ledger has no such study."""
        run = self._client.get_run(self._parent_id())
        parts = sorted((k, v) for k, v in run.data.tags.items() if k.startswith(TAG_SPEC + "."))
        try:
            spec = json.loads("".join(v for _, v in parts))
        except ValueError:
            raise ArtifactError(
                f"study {self.study!r}: its specification in the ledger {shown(self.tracking_uri)} cannot be read; "
                "type its study.run command again to restore it"
            ) from None
        return StudyRecord(run.info.run_id, spec, run.data.tags.get(names.TAG_FINGERPRINT, ""), dict(run.data.tags))

    def trials(self) -> list[TrialRecord]:
        """Every trial of the study, by trial and seed. Raises :class:`InputError` for an unknown study."""
        self._parent_id()
        runs = self._search(f"tags.`{names.TAG_ROLE}` = 'trial'")
        return sorted((read_run(run) for run in runs), key=lambda r: (r.trial, r.seed))

    def other_protocol(self, protocol: str) -> str | None:
        """Of a trial that is tagged with another protocol than this: which. None for a study that is not there."""
        path = sqlite_path(self.tracking_uri)
        if (path is not None and not path.exists()) or self._find_known_parent() is None:
            return None
        other = f"tags.`{names.TAG_ROLE}` = 'trial' AND tags.`{names.TAG_PROTOCOL}` != '{protocol}'"
        return next((run.data.tags[names.TAG_PROTOCOL] for run in self._search(other, limit=1)), None)

    def rescore(
        self, record: TrialRecord, protocol: str, scores: Mapping[int, Mapping[str, float]], files: Sequence[Path] = ()
    ) -> None:
        """Give a trial its scores under ``protocol``, see :func:`study.ledger.rescored.replace_scores`."""
        replace_scores(self._client, record, protocol, scores, files)

    def bulk(self) -> BulkReader:
        """A reader for all trials at once. Raises :class:`InputError` for an unknown study."""
        self._parent_id()
        return BulkReader(self._client, str(self._experiment))

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """All values of one metric as (epoch, value), by epoch; empty where it was never logged."""
        return sorted((m.step, m.value) for m in self._client.get_metric_history(run_id, metric))

    def download(self, run_id: str, artifact_path: str, dst: Path) -> Path:
        """Copy one artifact into the folder ``dst``; its path there. Raises :class:`ArtifactError` if it fails."""
        dst.mkdir(parents=True, exist_ok=True)
        try:
            return Path(self._client.download_artifacts(run_id, artifact_path, str(dst)))
        except Exception as error:
            raise ArtifactError(
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

    def _log_inputs(self, run: Any, inputs: Sequence[DataInput]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        there = {i.dataset.digest for i in run.inputs.dataset_inputs} if run.inputs else set()
        new = [
            DatasetInput(
                Dataset(
                    i.name, i.digest, "local", json.dumps({"uri": i.source}), profile=json.dumps({"images": i.images})
                ),
                [InputTag("mlflow.data.context", i.context)],
            )
            for i in inputs
            if i.digest not in there
        ]
        if new:
            self._client.log_inputs(run.info.run_id, new)

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
        runs = self._search(f"tags.`{names.TAG_ROLE}` = 'study'", limit=1)
        return runs[0] if runs else None

    def _find_known_parent(self) -> str | None:
        if self._parent is None:
            experiment = self._client.get_experiment_by_name(self.study)
            if experiment is not None and experiment.lifecycle_stage == "active":
                self._experiment = experiment.experiment_id
                parent = self._find_parent()
                self._parent = parent.info.run_id if parent else None
        return self._parent

    def _parent_id(self) -> str:
        parent = self._find_known_parent()
        if parent is None:
            studies = sorted(e.name for e in self._client.search_experiments() if e.name != "Default")
            there = f"there are {', '.join(studies)}" if studies else "it holds no study yet; start one with study.run"
            raise InputError(f"study {self.study!r} is not in the ledger {shown(self.tracking_uri)}; {there}")
        return parent

    def _create_once(self, tags: Mapping[str, str], name: str, matching: str) -> Any:
        """Create a run; where another process does so at the same time, one run is left, and both go on with it.

        Whoever sees another's beside their own takes their own back and looks again after a while of chance length:
        which is the older is nothing that clocks of two machines can say.
        """
        while True:
            run = self._client.create_run(self._experiment, tags=dict(tags), run_name=name)
            if len(self._search(matching)) == 1:
                return run
            self._client.delete_run(run.info.run_id)
            time.sleep(random.uniform(*_STAND_BACK))
            if found := self._search(matching, limit=1):
                return found[0]

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
