"""Refuses to continue a study whose trials were scored under another protocol: scores of two are never mixed."""

from __future__ import annotations

from study import names
from study.errors import InputError
from study.ledger import Ledger
from study.search.stored import stored_protocol
from study.storage.storage import Storage


def check_protocol(storage: Storage, study: str, protocol: str, tracking_uri: str, options: str = "") -> None:
    """Raises :class:`InputError` where trials of the study were scored under another protocol than ``protocol``.

    ``options`` are those by which a command finds the study, as typed. A study that is not there yet is fine.
    """
    other = Ledger(tracking_uri, study).other_protocol(protocol)
    if other is None:
        kept = stored_protocol(storage.local / study / names.OPTUNA_FILE, study)
        if kept is None or kept == protocol:
            return
        other = kept or "another protocol"
    raise InputError(
        f"study {study!r} was scored under {other} and this version scores under {protocol}, which do not mix; "
        f"`python -m study.rescore {study}{options}` scores its stored networks again without training, or --fork NEW "
        "begins a new study"
    )
