"""``python -m study.status``: machines, trials on each, throughput, failures and lost machines, at a glance."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study import names
from study.cluster.place import cluster_file, on_cluster_machine
from study.command import Parser, refuse_empty, run_command
from study.errors import InputError
from study.storage.storage import DEFAULT_STORAGE, Storage

_WINDOW_SECONDS = 3600.0


def parser() -> argparse.ArgumentParser:
    parse = Parser(
        prog="python -m study.status",
        description="Machines and GPUs, trials on each, throughput, failures and lost machines.",
    )
    add = parse.add_argument
    add("study", nargs="?", help="a study (default: every one in the ledger)")
    add("--cluster", metavar="FILE", help="ask this cluster's head (default: the one that was brought up from here)")
    add("--local", action="store_true", help="this machine although a cluster is up")
    add("--storage", default=DEFAULT_STORAGE, metavar="DIR_OR_URI", help="where results live")
    add("--tracking-uri", metavar="URI", help="MLflow server or store (default: mlflow.db in the results folder)")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    if not args.local and (file := cluster_file(args.cluster)):
        from study.cluster.submit import ask, options

        positional = [args.study] if args.study else []
        return ask(file, "study.status", [*positional, *options(parser(), args)])
    from study.ledger import Ledger, default_tracking_uri, studies

    storage = Storage.parse(args.storage)
    uri = args.tracking_uri or default_tracking_uri(storage.local)
    # A cluster that has just been brought up has machines to show, and no ledger yet.
    on_cluster = on_cluster_machine()
    fresh = on_cluster and not args.tracking_uri and not (storage.local / names.LEDGER_FILE).exists()
    known = {} if fresh else studies(uri)
    if args.study and args.study not in known:
        raise InputError(f"study {args.study!r} is not in the ledger; there are {', '.join(sorted(known)) or 'none'}")
    wanted = [args.study] if args.study else list(known)
    trials = {name: Ledger(uri, name).trials() for name in wanted}
    running = Counter(
        t.tags.get(names.TAG_HOST, "?") for found in trials.values() for t in found if t.state == names.RUNNING
    )
    done = Counter(
        t.tags.get(names.TAG_HOST, "?") for found in trials.values() for t in found if t.state != names.RUNNING
    )
    if on_cluster:
        from study.tuning.capacity import machines

        print("\n".join(machine_lines(machines(), running, done)))
    for name in wanted:
        print("\n".join(study_lines(name, trials[name], events(storage.local / name), time.time())))
    return 0


def machine_lines(machines: Sequence[Mapping[str, Any]], running: Counter[str], done: Counter[str]) -> list[str]:
    """A line per machine (``address``, ``alive``, ``cpus``, ``gpus``), those that are gone only where trials were."""
    live = [m for m in machines if m["alive"]]
    cpus, gpus = (sum(m[kind] for m in live) for kind in ("cpus", "gpus"))
    lines = [f"{len(live)} machines · {cpus:g} CPUs · {gpus:g} GPUs for trials"]
    lines.append(f"  {'machine':<18}{'state':<8}{'CPUs':>6}{'GPUs':>6}{'running':>9}{'ended':>7}")
    addresses = {m["address"]: m for m in machines}  # a machine that came back is listed once, as it is now
    addresses |= {m["address"]: m for m in live}
    for address, machine in sorted(addresses.items()):
        if machine["alive"] or running[address] or done[address]:
            state = "up" if machine["alive"] else "lost"
            has = f"{machine['cpus']:>6g}{machine['gpus']:>6g}"
            lines.append(f"  {address:<18}{state:<8}{has}{running[address]:>9}{done[address]:>7}")
    return lines


def study_lines(name: str, trials: Sequence[Any], happened: Counter[str], now: float) -> list[str]:
    """What a study has done and what befell it. ``now`` is Unix time in seconds."""
    states = Counter(t.state for t in trials)
    counted = ", ".join(f"{states[s]} {s}" for s in names.STATES if states[s]) or "none yet"
    lines = [f"study {name}", f"  trials        {len(trials)}: {counted}"]
    ended = [t for t in trials if t.end_ms is not None and t.state != names.RUNNING]
    if ended:
        last = max(t.end_ms for t in ended) / 1000
        until = now if states[names.RUNNING] else last
        first = min(t.start_ms for t in trials) / 1000
        window = max(1.0, min(_WINDOW_SECONDS, until - first))
        recent = [t for t in ended if t.end_ms / 1000 > until - window]
        epochs = sum(t.metrics.get("epoch", 0.0) for t in recent)
        per_hour = 3600 / window
        lines.append(
            f"  throughput    {len(recent) * per_hour:.3g} trials and {epochs * per_hour:.3g} epochs an hour, "
            f"over the last {window / 60:.0f} min"
        )
    failures = ", ".join(f"{n} {what}" for what, n in sorted(happened.items()) if what != "machine lost") or "none"
    lines.append(f"  failures      {failures}")
    lines.append(f"  preemptions   {happened['machine lost']} trials lost their machine and went on elsewhere")
    return lines


def events(folder: Path) -> Counter[str]:
    """How often what happened to a study's trials, from the file that its sessions write."""
    try:
        lines = (folder / names.EVENTS_FILE).read_text().splitlines()
    except OSError:
        return Counter()
    found: Counter[str] = Counter()
    for line in lines:
        try:
            found[json.loads(line)["event"]] += 1
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a session that was killed while writing
    return found


if __name__ == "__main__":
    sys.exit(run_command(main))
