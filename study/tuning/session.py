"""One session of a study on Ray: from its data to trials that are trained, scored and in the ledger."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rich.console import Console

from study import names
from study.ledger import Ledger, close_session, create_store, masked, replay, serve
from study.search.search import Search
from study.search.warm_start import warm_start
from study.storage.study_file import write_study
from study.tuning.capacity import Capacity
from study.tuning.job import Settings
from study.tuning.joining import connected, head_address
from study.tuning.provenance import version_tags
from study.tuning.request import Request, StudyData, open_data
from study.tuning.tuner import run_trials

_MACHINES_SECONDS = 300.0  # how long the machines of a cluster may take to join after `ray up`
_LONGEST_TAG = 4000

Tell = Callable[[str], None]


def run_study(request: Request) -> Search:
    """Run a study, or continue it; what is known of its trials afterwards.

    Raises :class:`InputError` where the request cannot be met, :class:`InsufficientResourcesError` where a trial asks
    for more than the cluster has.
    """
    spec, console = request.spec, Console()
    tell: Tell = partial(console.print, highlight=False, soft_wrap=True)
    tracking_uri = None if request.in_cluster else _local_ledger(request)
    with connected(request.address or ("auto" if request.in_cluster else None)):
        tracking_uri = tracking_uri or _served_ledger(request)
        capacity = Capacity(spec.resources)
        if request.in_cluster:
            capacity.wait(_MACHINES_SECONDS, partial(print, flush=True))
        at_once = capacity.at_once()
        data = open_data(request, tracking_uri)
        write_study(request.storage, request.name, spec, data.identity, data.fingerprint)
        tags = {names.TAG_FINGERPRINT: data.fingerprint, **version_tags()}
        ledger = _open_ledger(request, tracking_uri, tags)
        search = Search(spec, request.name, request.folder / names.OPTUNA_FILE)
        for study in request.earlier:
            start = warm_start(
                spec,
                data.identity,
                request.storage,
                Ledger(tracking_uri, study),
                checkpoints=request.from_checkpoints,
            )
            search.begin_from(study, start, request.storage)
            tell(start.said)
        _announce(request, data, search, at_once, capacity, tell)
        settings = Settings(
            study=request.name,
            storage=request.storage,
            tracking_uri=tracking_uri,
            cpus=spec.resources.cpus,
            gpus=spec.resources.gpus,
            tags={**tags, names.TAG_PROTOCOL: spec.protocol},
            system_metrics=request.system_metrics,
        )
        run_trials(search, settings, console)
        if request.twins and search.remaining() == 0 and search.enqueue_twins():
            run_trials(search, settings, console)
        while search.remaining() == 0 and search.enqueue_replicates(request.replicates, at_once):
            run_trials(search, settings, console)
        _close(request, ledger, complete=search.remaining() == 0)
    return search


def _local_ledger(request: Request) -> str:
    """The ledger's URI; its store is made before Ray is started, which takes seconds."""
    create_store(request.local_ledger)
    return request.local_ledger


def _served_ledger(request: Request) -> str:
    """The URI of a cluster's ledger: workers on other machines write to it too, and SQLite is for one machine."""
    uri = request.tracking_uri or serve(request.storage.local, head_address())
    create_store(uri)
    print(f"MLflow   {uri}", flush=True)
    return uri


def _open_ledger(request: Request, tracking_uri: str, tags: Mapping[str, str]) -> Ledger:
    """The study's run; what a killed session could not send is sent now."""
    ledger = Ledger(tracking_uri, request.name)
    ledger.open_study(
        fingerprint=tags[names.TAG_FINGERPRINT],
        spec=request.spec.model_dump(mode="json", by_alias=True),
        tags={**tags, names.TAG_COMMAND: masked(request.command)[:_LONGEST_TAG]},
        artifact_location=_artifact_location(request),
    )
    replay(ledger, request.folder / "trials")
    return ledger


def _artifact_location(request: Request) -> str | None:
    """A server decides for itself; the local store keeps artifacts beside the study's other results."""
    if request.tracking_uri is not None and request.tracking_uri.startswith(("http://", "https://")):
        return None
    uri = request.storage.uri
    return f"{uri}/{request.name}/artifacts" if uri else (request.folder / "artifacts").as_uri()


def _announce(request: Request, data: StudyData, search: Search, at_once: int, capacity: Capacity, tell: Tell) -> None:
    spec, counts, cluster = request.spec, search.counts(), capacity.resources_present()
    tell(
        f"study {request.name} · {Path(spec.data_config.source).name} ({data.n_classes} classes) · "
        f"{spec.budget.trials} trials × {spec.fidelity.max_epochs} epochs · {at_once} at once on "
        f"{cluster.get('CPU', 0):g} CPUs, {cluster.get('GPU', 0):g} GPUs"
    )
    done, interrupted = sum(counts.values()) - counts[names.RUNNING], search.resumed
    if done or interrupted:
        tell(f"continuing: {done} trials are finished, {interrupted} were interrupted and go on from their checkpoints")


def _close(request: Request, ledger: Ledger, *, complete: bool) -> None:
    untold = close_session(ledger, request.folder / "trials", complete=complete)
    if untold:
        print(
            f"ledger   {untold} trials wait for {request.tracking_uri or 'the ledger'}, which does not answer; "
            "nothing is lost: type the same command when it is back",
            file=sys.stderr,
        )
