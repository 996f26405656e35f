"""``python -m study.run``: a study, from a specification to trained, scored and recorded trials."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import names
from study.cluster.place import cluster_file, on_cluster_machine
from study.command import EXIT_BAD_INPUT, EXIT_INTERRUPTED, Parser, refuse_empty, run_command
from study.errors import InputError, InsufficientResourcesError
from study.spec.eligible import empty_line, reasons_line
from study.spec.study_spec import StudySpec, load_spec, parse_duration
from study.storage.storage import DEFAULT_STORAGE, Storage, check_study_name, location_options

if TYPE_CHECKING:
    from study.search.search import Search
    from study.tuning.request import Request

DEFAULT_SPEC = "search_spaces/cifar100.yaml"
_PLAN_OPTIONS = ("--at-once", "--price", "--profile", "--save-profile")


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
    command = shlex.join(["python", "-m", "study.run", *(sys.argv[1:] if argv is None else argv)])
    path = Path(args.spec or DEFAULT_SPEC)
    spec = load_spec(path, overrides=_overrides(args))
    name, earlier = _names(args, path)
    _check_replicates(args, spec)
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
        from study.tuning.joining import probe

        probe(args.address)
    from study.tuning.request import Request

    request = Request(
        spec=spec,
        name=name,
        storage=storage,
        command=command,
        options=location_options(args.storage, args.tracking_uri),
        tracking_uri=args.tracking_uri,
        address=args.address,
        in_cluster=on_cluster_machine(),
        earlier=tuple(earlier),
        from_checkpoints=args.fork is not None,
        twins=args.twins,
        replicates=args.replicates,
        system_metrics=args.system_metrics,
    )
    return _run(args, request)


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    try:
        seconds = parse_duration(args.time_budget) if args.time_budget else None
    except ValueError as error:
        raise InputError(f"--time-budget: {error}") from None
    return {"data.source": args.data, "budget.trials": args.trials, "budget.time": seconds, "seed": args.seed}


def _names(args: argparse.Namespace, path: Path) -> tuple[str, list[str]]:
    """The study's name, and those of the studies that it begins from."""
    name = args.name or path.stem
    check_study_name("--name", name)
    for option, given in (("--fork", [args.fork]), ("--warm-start", args.warm_start or [])):
        for other in given:
            check_study_name(option, other or name)
    earlier = list(args.warm_start or ())
    if args.fork:
        earlier, name = [*earlier, name], args.fork
    if name in earlier:
        raise InputError(f"--fork {name}: a study cannot begin from itself; choose another name")
    return name, earlier


def _check_replicates(args: argparse.Namespace, spec: StudySpec) -> None:
    if args.replicates < 0:
        raise InputError(f"--replicates {args.replicates}: a number of trainings, 0 or more")
    if args.replicates and "seed" in spec.space:
        raise InputError("--replicates: this study searches the seed itself; leave 'seed' out of its space")


def _run(args: argparse.Namespace, request: Request) -> int:
    if request.spec.resources.gpus == 0:  # a cluster without GPUs is refused before a large data set is fetched
        from study.tuning.request import open_data

        open_data(request, None if request.in_cluster else request.local_ledger)  # mistakes are told before Ray starts
    from study.tuning.session import run_study

    try:
        search = run_study(request)
    except InsufficientResourcesError as error:
        if args.spec is not None or error.resource != "GPU":
            raise
        return _refuse_without_gpu(request.spec)
    return _conclude(args, request, search)


def _conclude(args: argparse.Namespace, request: Request, search: Search) -> int:
    """The front on stdout; on stderr where the results are and what to type next."""
    counts, front, left = search.counts(), search.front(), search.remaining()
    parts = [f"{counts[s]} {s}" for s in (names.STOPPED, names.FAILED, names.RUNNING) if counts[s]]
    print(f"front ({len(front)} of {sum(counts.values())} trials{''.join(', ' + p for p in parts)}):")
    for number, point, values in sorted(front, key=lambda item: -request.spec.targets[0].sign * item[2][0]):
        scores = "  ".join(f"{m.name} {v:.4g}" for m, v in zip(request.spec.targets, values, strict=True))
        where = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in point.items())
        print(f"  {scores}   {where}   trial {number}")
    outside = search.not_eligible()
    if not front:
        print(f"  empty: {empty_line(outside)}")
    elif outside:
        print(f"  {reasons_line(outside)}")
    own = shlex.quote(str(request.storage.local))
    ui = "make ui" if args.storage == DEFAULT_STORAGE else f"python -m study.ui --storage {own}"
    where = "" if request.in_cluster else f"        MLflow   {args.tracking_uri or ui}"
    print(f"results  {request.folder}{where}", file=sys.stderr)
    if left:
        print(f"next     {left} trials are left: type the same command to continue", file=sys.stderr)
        return EXIT_INTERRUPTED if counts[names.RUNNING] and request.spec.budget.time is None else 0
    print(f"next     python -m analysis.pareto {request.name}{request.options}", file=sys.stderr)
    return 0


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


if __name__ == "__main__":
    sys.exit(run_command(main))
