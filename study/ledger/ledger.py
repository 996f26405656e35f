"""The ledger: one MLflow run per trial and seed, exactly once, whatever is killed and started again.

One MLflow experiment per study; a run of the study's own that carries the specification; nested in it one run per
trial and seed, found again by its tag ``TAG_KEY``. MLflow is imported when the ledger is first used, never before, and
without its global state: no tracking URI, no active run. See docs/decisions/0006-ledger.md.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study import names
from study.errors import ArtifactError, InputError
from study.ledger import presentation
from study.ledger.attempts import SupersededError, new_attempt
from study.ledger.bulk import BulkReader, bulk_reader
from study.ledger.experiment import Experiment, find_experiment, find_or_create_experiment
from study.ledger.records import (
    DataInput,
    StudyRecord,
    TrialRecord,
    flatten,
    read_run,
    run_name,
    spec_parts,
    spec_tags,
)
from study.ledger.rescored import replace_scores
from study.ledger.run import TrialRun, log_inputs, log_texts
from study.ledger.store import check_artifact_store, connect, create_store
from study.ledger.tracking import first_line, masked, sqlite_path

TAG_TEST_OPENING = "study.test_opening"  # study.test_opening/WHEN: the test split was opened, and why

_IS_STUDY = f"tags.`{names.TAG_ROLE}` = 'study'"
_IS_TRIAL = f"tags.`{names.TAG_ROLE}` = 'trial'"


@dataclass(frozen=True)
class _Study:
    """Where the study is in MLflow: ``run_id`` is that of its own run, in which those of its trials are nested."""

    experiment: Experiment
    run_id: str


class Ledger:
    """One study's runs in one MLflow store. Constructing one touches nothing; it can be pickled."""

    def __init__(self, tracking_uri: str, study: str) -> None:
        self.tracking_uri = tracking_uri
        self.study = study
        self._known: _Study | None = None

    def __reduce__(self) -> tuple[type[Ledger], tuple[str, str]]:
        return Ledger, (self.tracking_uri, self.study)  # a connection does not travel to another process

    @functools.cached_property
    def _client(self) -> Any:
        return connect(self.tracking_uri)

    def open_study(
        self, *, fingerprint: str, spec: Mapping[str, Any], tags: Mapping[str, str], artifact_location: str | None
    ) -> str:
        """Find or create the experiment and the study's own run, and bring spec and tags up to date; the run's id.

        Raises :class:`InputError` where the name belongs to a study with another fingerprint.
        """
        check_artifact_store(artifact_location)
        create_store(self.tracking_uri)
        experiment = find_or_create_experiment(self._client, self.study, artifact_location)
        run = experiment.first(_IS_STUDY)
        if run is not None and run.data.tags.get(names.TAG_FINGERPRINT) != fingerprint:
            raise InputError(
                f"study {self.study!r} exists in the ledger {masked(self.tracking_uri)} with another specification; "
                "choose another --name or --tracking-uri"
            )
        if run is None:
            identity = {names.TAG_ROLE: "study", names.TAG_STUDY: self.study, names.TAG_FINGERPRINT: fingerprint}
            run = experiment.create_once(_IS_STUDY, f"study {self.study}", identity)
        run_id: str = run.info.run_id
        self._known = _Study(experiment, run_id)
        self._client.update_run(run_id, "RUNNING")
        whole = DataInput("specification", fingerprint[:32], names.STUDY_FILE, "specification")
        log_inputs(self._client, self._client.get_run(run_id), [whole])
        self._describe(experiment.id, spec)
        parts = spec_tags(spec)
        log_texts(self._client, run_id, tags={**tags, **parts})
        if presentation.NOTE not in run.data.tags:
            self._client.set_tag(run_id, presentation.NOTE, presentation.study_note(self.study, spec))
        for stale in spec_parts(run.data.tags).keys() - parts.keys():
            self._client.delete_tag(run_id, stale)
        return run_id

    def _describe(self, experiment_id: str, spec: Mapping[str, Any]) -> None:
        """Add the experiment's description and view; what is there already, edited or not, stays."""
        there = self._client.get_experiment(experiment_id).tags
        tags = presentation.experiment_tags(self.study, experiment_id, spec, int(time.time() * 1000))
        for name, value in tags.items():
            if name not in there:
                self._client.set_experiment_tag(experiment_id, name, value)

    def close_study(self, *, complete: bool) -> None:
        """End the study's own run: finished, or killed where trials are left for the next session."""
        self._client.set_terminated(self._opened().run_id, "FINISHED" if complete else "KILLED")

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
        """The run of this trial and seed: found again and set back to RUNNING, else created.

        From now on it belongs to ``attempt`` (None: a new one); what earlier attempts still write is refused. Raises
        :class:`SupersededError` where a later attempt has it. ``params`` may be nested; what a run already holds is
        left as it is, since MLflow's params never change.
        """
        study = self._opened()
        key = f"{self.study}/{trial}/{seed}"
        matching = f"tags.`{names.TAG_KEY}` = '{key}'"
        run = study.experiment.first(matching)
        holder = run.data.tags.get(names.TAG_ATTEMPT, "") if run else ""
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
            "mlflow.parentRunId": study.run_id,
        }
        if run is None or presentation.NOTE not in run.data.tags:
            tags[presentation.NOTE] = presentation.trial_note(trial, params)
        if run is None:
            run = study.experiment.create_once(matching, run_name(trial, params), tags)
        run_id = run.info.run_id
        if run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        if names.TAG_REASON in run.data.tags:
            self._client.delete_tag(run_id, names.TAG_REASON)
        if run.data.tags.get(names.TAG_ATTEMPT) == attempt:
            tags = {}  # they were written when the run was created
        new = {name: value for name, value in flatten(params).items() if name not in run.data.params}
        log_texts(self._client, run_id, params=new, tags=tags)
        log_inputs(self._client, run, inputs)
        return TrialRun(self._client, run_id, attempt, run.info.start_time)

    def record(self) -> StudyRecord:
        """The study's own run. Raises :class:`InputError` where the ledger has no such study."""
        run = self._client.get_run(self._opened().run_id)
        try:
            spec = json.loads("".join(spec_parts(run.data.tags).values()))
        except ValueError:
            raise ArtifactError(
                f"study {self.study!r}: its specification in the ledger {masked(self.tracking_uri)} cannot be read; "
                "type its study.run command again to restore it"
            ) from None
        return StudyRecord(run.info.run_id, spec, run.data.tags.get(names.TAG_FINGERPRINT, ""), dict(run.data.tags))

    def trials(self) -> list[TrialRecord]:
        """Every trial of the study, by trial and seed. Raises :class:`InputError` for an unknown study."""
        runs = self._opened().experiment.search(_IS_TRIAL)
        return sorted((read_run(run) for run in runs), key=lambda r: (r.trial, r.seed))

    def other_protocol(self, protocol: str) -> str | None:
        """The protocol of a trial that was scored under another one than ``protocol``; None where there is none.

        Also None for a study that is not there.
        """
        path = sqlite_path(self.tracking_uri)
        if (path is not None and not path.exists()) or (study := self._find()) is None:
            return None
        other = study.experiment.first(f"{_IS_TRIAL} AND tags.`{names.TAG_PROTOCOL}` != '{protocol}'")
        return other and str(other.data.tags[names.TAG_PROTOCOL])

    def rescore(
        self, record: TrialRecord, protocol: str, scores: Mapping[int, Mapping[str, float]], files: Sequence[Path] = ()
    ) -> None:
        """Replace a trial's scores by those under ``protocol``, see :func:`study.ledger.rescored.replace_scores`."""
        replace_scores(self._client, record, protocol, scores, files)

    def bulk(self) -> BulkReader:
        """A reader for all trials at once. Raises :class:`InputError` for an unknown study."""
        return bulk_reader(self._client, self._opened().experiment.id)

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

    def download_network(self, run_id: str, dst: Path) -> Path:
        """Copy a network's weights and card into ``dst``; the folder that holds both.

        Raises :class:`ArtifactError` if one fails.
        """
        for file in (names.MODEL_FILE, names.MODEL_CONFIG_FILE):
            downloaded = self.download(run_id, f"{names.CHECKPOINT_ARTIFACTS}/{file}", dst)
        return downloaded.parent

    def log_test_opening(self, run_id: str, purpose: str, when: str) -> int:
        """Note on the trial and on the study that the test split is opened; how often that was so far.

        ``when`` is an ISO 8601 time. Selection by test scores shows as a count above one per trial.
        """
        parent = self._opened().run_id
        tag = f"{TAG_TEST_OPENING}/{re.sub('[^0-9A-Za-z:.-]', '_', when)}"  # a tag's name takes no plus sign
        self._client.set_tag(run_id, tag, f"{when} {purpose}")
        self._client.set_tag(parent, f"{tag}/{run_id[:8]}", f"{when} run {run_id} {purpose}")
        return sum(tag.startswith(TAG_TEST_OPENING + "/") for tag in self._client.get_run(parent).data.tags)

    def _find(self) -> _Study | None:
        """Where the study is, looked up once; None where the ledger does not have it."""
        if self._known is None:
            experiment = find_experiment(self._client, self.study)
            run = experiment and experiment.first(_IS_STUDY)
            self._known = _Study(experiment, run.info.run_id) if experiment and run else None
        return self._known

    def _opened(self) -> _Study:
        """Where the study is. Raises :class:`InputError`, naming the studies of the ledger, where it is not there."""
        study = self._find()
        if study is None:
            studies = sorted(e.name for e in self._client.search_experiments() if e.name != "Default")
            there = f"there are {', '.join(studies)}" if studies else "it holds no study yet; start one with study.run"
            raise InputError(f"study {self.study!r} is not in the ledger {masked(self.tracking_uri)}; {there}")
        return study
