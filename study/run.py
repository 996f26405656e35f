"""``python -m study.run``: a study, from a specification to trained, scored and recorded trials."""

from __future__ import annotations

import argparse
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from study import __version__, names
from study.cluster.place import cluster_file, on_cluster_machine
from study.command import EXIT_BAD_INPUT, EXIT_INTERRUPTED, Parser, refuse_empty, run_command
from study.errors import InputError, InsufficientResourcesError
from study.spec.eligible import empty_line, reasons_line
from study.spec.study_spec import StudySpec, load_spec, parse_duration
from study.storage.storage import DEFAULT_STORAGE, Storage, check_study_name
from study.storage.study_file import check_same_study, write_study

DEFAULT_SPEC = "search_spaces/cifar100.yaml"
_PLAN_OPTIONS = ("--at-once", "--price", "--profile", "--save-profile")
_MACHINES_SECONDS = 300.0  # how long the machines of a cluster may take to join after `ray up`
_STACK = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow", "numpy")


def parser() -> argparse.ArgumentParser:
    parse = Parser(
        prog="python -m study.run",
        description="Run a study, or continue it: the same command goes on where the last one ended.",
    )
    add = parse.add_argument
    add("spec", nargs="?", help=f"specification (default: {DEFAULT_SPEC}, which needs a GPU)")
    add("--data", help="images: shapes (embedded), cifar100 (download), or a folder of Parquet or archive files")
    add("--trials", type=int, help="end after so many trials; more than before extends the study")
    add("--time-budget", metavar="30m", help="end this session after so long; the same command continues")
    add("--name", help="name of the study (default: the specification's file name)")
    add(
        "--storage",
        default=DEFAULT_STORAGE,
        metavar="DIR_OR_URI",
        help="where results live (default: $STUDY_STORAGE, else results)",
    )
    add("--tracking-uri", metavar="URI", help="MLflow server or store (default: mlflow.db in the results folder)")
    add(
        "--cluster",
        metavar="FILE",
        help="run on this cluster's head (default: the cluster that was brought up from here)",
    )
    add("--local", action="store_true", help="run on this machine although a cluster is up")
    add("--address", help="Ray cluster, HOST:PORT (default: the one that is found, else this machine)")
    add("--seed", type=int, help="of the search and of every training")
    add(
        "--warm-start",
        action="append",
        metavar="STUDY",
        help="learn from an earlier study (repeatable)",
    )
    add("--fork", metavar="NEW", help="run under this name, with the study --name as warm start")
    add("--replicates", type=int, default=0, metavar="N", help="repeat N trainings near the front with other seeds")
    add("--twins", action="store_true", help="train a λ = 0 twin of every front point with λ > 0")
    add("--plan", action="store_true", help="print what the study will cost, with the spread, and stop")
    add("--at-once", type=int, metavar="N", help="plan: trials that the cluster runs at once (default: this machine's)")
    add("--price", type=float, metavar="P", help="plan: of a GPU-hour, or of a machine-hour where no GPU is asked for")
    add("--profile", metavar="FILE", help="plan: speeds from this file, recorded where the study will run")
    add("--save-profile", metavar="FILE", help="plan: write the speeds timed here to this file")
    add("--system-metrics", action="store_true", help="log processor, memory, disk, network and GPU use every 10 s")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    args.typed = shlex.join(["python", "-m", "study.run", *(sys.argv[1:] if argv is None else argv)])
    path = Path(args.spec or DEFAULT_SPEC)
    spec = load_spec(path, overrides=_overrides(args))
    name = args.name or path.stem
    check_study_name("--name", name)
    for option, given in (("--fork", [args.fork]), ("--warm-start", args.warm_start or [])):
        for other in given:
            check_study_name(option, other or name)
    _check_replicates(args, spec)
    earlier = list(args.warm_start or ())
    if args.fork:
        earlier, name = [*earlier, name], args.fork
    if name in earlier:
        raise InputError(f"--fork {name}: a study cannot begin from itself; choose another name")
    if not (args.plan or args.local or args.address) and (file := cluster_file(args.cluster)):
        from study.cluster.submit import options, submit

        return submit(file, args.name or path.stem, path, options(parser(), args))
    storage = Storage.parse(args.storage)
    if args.plan:
        from study.planning.plan import plan_study

        return plan_study(
            spec,
            name,
            at_once=args.at_once,
            price=args.price,
            profile_file=args.profile,
            save_file=args.save_profile,
        )
    for option in _PLAN_OPTIONS:
        if getattr(args, option[2:].replace("-", "_")) is not None:
            raise InputError(f"{option}: is for a plan; add --plan, or leave it out to run the study")
    storage.check_writable()
    if args.address:
        _probe_address(args.address)
    if spec.resources.gpus > 0:  # a cluster without GPUs is refused before a large data set is fetched
        return _on_cluster(args, spec, name, storage, earlier, is_default=args.spec is None)
    identity, fingerprint, _ = _open_data(spec)
    check_same_study(storage, name, identity, fingerprint)
    if not on_cluster_machine():  # a mistake is told before Ray is started
        _check_protocol(args, spec, name, storage, args.tracking_uri)
    return _on_cluster(args, spec, name, storage, earlier, is_default=False)


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    try:
        seconds = parse_duration(args.time_budget) if args.time_budget else None
    except ValueError as error:
        raise InputError(f"--time-budget: {error}") from None
    return {"data.source": args.data, "budget.trials": args.trials, "budget.time": seconds, "seed": args.seed}


def _check_replicates(args: argparse.Namespace, spec: StudySpec) -> None:
    if args.replicates < 0:
        raise InputError(f"--replicates {args.replicates}: a number of trainings, 0 or more")
    if args.replicates and "seed" in spec.space:
        raise InputError("--replicates: this study searches the seed itself; leave 'seed' out of its space")


def _probe_address(address: str) -> None:
    from study.tuning.joining import probe

    probe(address)


def _open_data(spec: StudySpec) -> tuple[dict[str, Any], str, int]:
    """Decode the data into the cache (so that trials find it there); the study's identity and fingerprint."""
    from study.data import open_dataset

    dataset = open_dataset(spec.data_config, progress=True)
    identity = spec.identity(dataset.fingerprint)
    return identity, spec.fingerprint(dataset.fingerprint), dataset.n_classes


def _check_protocol(
    args: argparse.Namespace, spec: StudySpec, name: str, storage: Storage, tracking_uri: str | None
) -> None:
    from study.ledger import default_tracking_uri
    from study.rescoring.refusal import check_protocol

    uri = tracking_uri or default_tracking_uri(storage.local)
    check_protocol(storage, name, spec.protocol, uri, _where(args))


def _where(args: argparse.Namespace) -> str:
    """The options by which the next command finds the study, as typed."""
    options = f" --storage {args.storage}" if args.storage != DEFAULT_STORAGE else ""
    return options + (f" --tracking-uri {args.tracking_uri}" if args.tracking_uri else "")


def _on_cluster(
    args: argparse.Namespace, spec: StudySpec, name: str, storage: Storage, earlier: list[str], *, is_default: bool
) -> int:
    from rich.console import Console

    from study.ledger import Ledger, close_session, create_store, default_tracking_uri, masked, replay, serve
    from study.search.warm_start import warm_start
    from study.tuning.capacity import Capacity
    from study.tuning.joining import connected, head_address
    from study.tuning.session import concurrency, run_trials, storage_url

    console = Console(stderr=False)
    in_cluster = on_cluster_machine()
    if not in_cluster:
        tracking_uri = args.tracking_uri or default_tracking_uri(storage.local)
        create_store(tracking_uri)
    with connected(args.address or ("auto" if in_cluster else None)) as cluster:
        if in_cluster:  # workers on other machines write to the ledger too, and SQLite is for one machine
            tracking_uri = args.tracking_uri or serve(storage.local, head_address())
            create_store(tracking_uri)
            print(f"MLflow   {tracking_uri}", flush=True)
        try:
            capacity = Capacity(spec.resources)
            if in_cluster:
                capacity.wait(_MACHINES_SECONDS, lambda text: print(text, flush=True))
            at_once = concurrency(spec.resources, cluster, capacity)
        except InsufficientResourcesError as error:
            if not is_default or error.resource != "GPU":
                raise
            return _refuse_without_gpu(spec)
        identity, fingerprint, n_classes = _open_data(spec)
        fingerprint = check_same_study(storage, name, identity, fingerprint)
        _check_protocol(args, spec, name, storage, tracking_uri)
        write_study(storage, name, spec, identity, fingerprint)

        from study.tuning.searcher import StudySearcher

        tags = {names.TAG_FINGERPRINT: fingerprint, names.TAG_CODE_VERSION: code_version(), **stack_versions()}
        ledger = Ledger(tracking_uri, name)
        ledger.open_study(
            fingerprint=fingerprint,
            spec=spec.model_dump(mode="json", by_alias=True),
            tags={**tags, names.TAG_COMMAND: masked(args.typed)[:4000]},
            artifact_location=_artifact_location(args.tracking_uri, storage, name),
        )
        replay(ledger, storage.local / name / "trials")  # what a killed session could not tell
        searcher = StudySearcher(
            spec,
            storage_url(storage.local / name),
            name,
            {
                "study": name,
                "storage": str(storage.local),
                "storage_uri": storage.uri,
                "tracking_uri": tracking_uri,
                "cpus": spec.resources.cpus,
                "gpus": spec.resources.gpus,
                "system_metrics": args.system_metrics,
                "tags": {**tags, names.TAG_PROTOCOL: spec.protocol},
            },
        )
        for study in earlier:
            start = warm_start(spec, identity, storage, Ledger(tracking_uri, study), checkpoints=args.fork is not None)
            searcher.begin_from(study, start.results, start.points, storage)
            console.print(start.said, highlight=False, soft_wrap=True)
        counts = searcher.counts()
        done = sum(counts.values()) - counts[names.RUNNING]
        cluster = capacity.resources_present()
        cpus = cluster.get("CPU", 0)
        console.print(
            f"study {name} · {_data_name(spec)} ({n_classes} classes) · {spec.budget.trials} trials × "
            f"{spec.fidelity.max_epochs} epochs · {at_once} at once on {cpus:g} CPUs, {cluster.get('GPU', 0):g} GPUs",
            highlight=False,
            soft_wrap=True,
        )
        if done or searcher.resumed:
            console.print(
                f"continuing: {done} trials are finished, {searcher.resumed} were interrupted and go on from their "
                "checkpoints",
                highlight=False,
                soft_wrap=True,
            )
        session: dict[str, Any] = {
            "storage": storage,
            "study": name,
            "ledger": ledger,
            "cluster": cluster,
            "time_budget": spec.budget.time,
            "console": console,
        }
        run_trials(spec, searcher, **session)
        left = searcher.remaining()
        if args.twins and left == 0 and searcher.enqueue_twins():
            run_trials(spec, searcher, **session)
            left = searcher.remaining()
        while left == 0 and searcher.enqueue_replicates(args.replicates, at_once):
            run_trials(spec, searcher, **session)
            left = searcher.remaining()
        untold = close_session(ledger, storage.local / name / "trials", complete=left == 0)
        if untold:
            print(
                f"ledger   {untold} trials wait for {args.tracking_uri or 'the ledger'}, which does not answer; "
                "nothing is lost: type the same command when it is back",
                file=sys.stderr,
            )
        return _conclude(args, spec, name, storage, searcher, left)


def _conclude(args: argparse.Namespace, spec: StudySpec, name: str, storage: Storage, searcher: Any, left: int) -> int:
    """The front on stdout; on stderr where the results are and what to type next."""
    counts = searcher.counts()
    front = searcher.front()
    total = sum(counts.values())
    parts = [f"{counts[s]} {s}" for s in (names.STOPPED, names.FAILED, names.RUNNING) if counts[s]]
    print(f"front ({len(front)} of {total} trials{''.join(', ' + p for p in parts)}):")
    for number, point, values in sorted(front, key=lambda item: -item[2][0]):
        scores = "  ".join(f"{m.name} {v:.4g}" for m, v in zip(spec.targets, values, strict=True))
        where = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in point.items())
        print(f"  {scores}   {where}   trial {number}")
    outside = searcher.not_eligible()
    if not front:
        print(f"  empty: {empty_line(outside)}")
    elif outside:
        print(f"  {reasons_line(outside)}")
    say = lambda text: print(text, file=sys.stderr)  # noqa: E731
    ui = "make ui" if args.storage == DEFAULT_STORAGE else f"python -m study.ui --storage {storage.local}"
    where = "" if on_cluster_machine() else f"        MLflow   {args.tracking_uri or ui}"
    say(f"results  {storage.local / name}{where}")
    if left:
        say(f"next     {left} trials are left: type the same command to continue")
        return EXIT_INTERRUPTED if counts[names.RUNNING] and spec.budget.time is None else 0
    say(f"next     python -m analysis.pareto {name}{_where(args)}")
    return 0


def _data_name(spec: StudySpec) -> str:
    return Path(spec.data_config.source).name


def _artifact_location(tracking_uri: str | None, storage: Storage, name: str) -> str | None:
    """A server decides for itself; the local store keeps artifacts beside the study's other results."""
    if tracking_uri is not None and tracking_uri.startswith(("http://", "https://")):
        return None
    return f"{storage.uri}/{name}/artifacts" if storage.uri else (storage.local / name / "artifacts").as_uri()


def _refuse_without_gpu(spec: StudySpec) -> int:
    """Not a week of CPU work by accident: the estimate, and what makes sense on this machine."""
    from study.planning.plan import plan_study

    plan_study(spec, Path(DEFAULT_SPEC).stem)
    print(
        f"error: {DEFAULT_SPEC} asks for {spec.resources.gpus:g} GPU a trial and no GPU is in sight; on this machine "
        "type `make study` or `python -m study.run search_spaces/laptop.yaml`, on a cluster `ray up cluster.yaml`",
        file=sys.stderr,
    )
    return EXIT_BAD_INPUT


def code_version() -> str:
    """The package's version and, in a checkout, the commit (with ``-dirty`` for uncommitted changes)."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{described.stdout.strip()}"


def stack_versions() -> dict[str, str]:
    """Tags with the versions of what computes the results."""
    versions = {"python": platform.python_version()}
    for package in _STACK:
        versions[package] = metadata.version(package)
    return {f"version.{name}": version for name, version in versions.items()}


if __name__ == "__main__":
    sys.exit(run_command(main))
