"""How a session joins Ray: the cluster that it was told of, the one to which this machine belongs, or a local one."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator

import ray

from study.errors import ClusterError, InputError
from study.tuning.ray_internals import address_of_this_machine

_CONNECT_SECONDS = 5.0


def probe(address: str) -> None:
    """Raises :class:`ClusterError` where nothing answers at ``[ray://]HOST:PORT``: Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--address {address}: not of the form HOST:PORT (the head's, port 6379 by default)")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"--address {address}: no Ray cluster answers there ({error}); start it with `ray up cluster.yaml`, "
            "or leave --address out to run on this machine"
        ) from None


def probe_own() -> None:
    """Raises :class:`ClusterError` where no Ray runs on this machine of a cluster.

    Ray's note of where it ran outlives a machine that was switched off and on again, and Ray would try that address
    for minutes.
    """
    try:
        probe(address_of_this_machine())
    except (ConnectionError, ClusterError):
        raise ClusterError(
            "no Ray runs on this machine of the cluster; bring it up again with `ray up`, then type the same command; "
            "or add --local on a machine of your own"
        ) from None


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[dict[str, float]]:
    """Join the cluster at ``address`` (None: the one that is found, else a local one); yields its resources."""
    if address == "auto":
        probe_own()
    elif address:
        probe(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except ValueError:  # Ray takes include_dashboard only where it starts the cluster itself
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise ClusterError(f"--address {address or 'auto'}: Ray refused: {str(error).splitlines()[0]}") from None
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def head_address() -> str:
    """The private address of the cluster's head, at which its other machines reach it."""
    return str(ray.get_runtime_context().gcs_address).rpartition(":")[0]
