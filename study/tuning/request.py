"""What a command asks of a study, and what is checked of it before Ray is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.data import open_dataset
from study.ledger import default_tracking_uri
from study.search.protocol import check_protocol
from study.spec.study_spec import StudySpec
from study.storage.storage import Storage
from study.storage.study_file import check_same_study


@dataclass(frozen=True)
class Request:
    """One session of the study ``name``. ``tracking_uri``, ``address`` and ``command`` are as typed.

    ``options``: those by which the next command finds the study, as typed. ``earlier``: names of studies to learn
    from, with ``from_checkpoints`` also from their checkpoints. ``in_cluster``: this machine is a cluster's head.
    """

    spec: StudySpec
    name: str
    storage: Storage
    command: str
    options: str = ""
    tracking_uri: str | None = None
    address: str | None = None
    in_cluster: bool = False
    earlier: tuple[str, ...] = ()
    from_checkpoints: bool = False
    twins: bool = False
    replicates: int = 0
    system_metrics: bool = False

    @property
    def local_ledger(self) -> str:
        """The ledger's URI on this machine, where it is not a cluster's head."""
        return self.tracking_uri or default_tracking_uri(self.storage.local)

    @property
    def folder(self) -> Path:
        """The study's own."""
        return self.storage.local / self.name


@dataclass(frozen=True)
class StudyData:
    """What a study's name stands for, now that its images are known: see :mod:`study.storage.study_file`."""

    identity: dict[str, Any]
    fingerprint: str
    n_classes: int


def open_data(request: Request, tracking_uri: str | None) -> StudyData:
    """Decode the images into the cache, where trials find them, and check that the study is the one of that name.

    ``tracking_uri`` None: there is no ledger yet whose scores could be of another protocol. Raises
    :class:`InputError` where the name belongs to another specification or protocol.
    """
    spec = request.spec
    dataset = open_dataset(spec.data_config, progress=True)
    identity = spec.identity(dataset.fingerprint)
    fingerprint = check_same_study(request.storage, request.name, identity, spec.fingerprint(dataset.fingerprint))
    if tracking_uri is not None:
        check_protocol(request.storage, request.name, spec.protocol, tracking_uri, request.options)
    return StudyData(identity, fingerprint, dataset.n_classes)
