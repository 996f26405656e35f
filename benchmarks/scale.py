"""What running a study costs beside its trials, by the number of nodes: ``python -m benchmarks.scale``.

Trials only sleep, so every second in which a slot does not is the study's own: proposing, starting, reporting,
telling the ledger. Everything else is the product: searcher, scheduler, callbacks, books. The nodes are raylets on this
machine, each with slots of its own. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from study.tuning.tuner import run_trials  # first: it sets what Ray reads when imported

# isort: split
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from study import metrics, names
from study.ledger import Ledger, close_session, create_store, default_tracking_uri
from study.search.search import Search
from study.spec.study_spec import StudySpec
from study.storage.storage import Storage
from study.tuning.capacity import Capacity
from study.tuning.job import Settings
from study.tuning.trainable import StudyTrainable

STUDY = "scale"


class Nap:
    """What :class:`study.trial.trial.Trial` is to its trainable: one epoch, which is slept through."""

    def __init__(self, seconds: float, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.history: list[dict[str, float]] = []
        self.reason = ""
        self._seconds = seconds

    finished = property(lambda self: bool(self.history))
    epoch = property(lambda self: len(self.history))
    state = property(lambda self: names.COMPLETE if self.history else names.RUNNING)

    def step(self) -> None:
        time.sleep(self._seconds)
        scores = {m.ledger_name: 50.0 for m in metrics.OBJECTIVES.values()}
        more = {f"made/{i}": float(i) for i in range(25)}  # a real report has about thirty numbers
        timing = {metrics.EPOCH_SECONDS: self._seconds, metrics.EVALUATION_SECONDS: 0.0}
        self.history.append({"epoch": 1, **timing, **scores, **more})
        (self.folder / "slept").write_text(f"{time.time() - self._seconds} {time.time()}")


class Silent:
    """A writer that writes nothing."""

    superseded = False

    def report(self, history: object) -> None: ...

    def finish(self, state: str, **what: object) -> None: ...


@dataclass(frozen=True)
class NapSettings(Settings):
    """``seconds`` of a nap; ``ledger``: whether it is told to the ledger."""

    seconds: float = 1.0
    ledger: bool = True


class SleepingTrainable(StudyTrainable):
    """The product's trainable, with a nap for a trial."""

    def _open(self) -> None:
        settings = self.job.settings
        assert isinstance(settings, NapSettings)
        self.trial = Nap(settings.seconds, self.job.folder)  # type: ignore[assignment]
        self.writer = self.job.open_writer() if settings.ledger else Silent()  # type: ignore[assignment]

    def _finish(self) -> None:
        scores = {k: v for k, v in self.trial.history[-1].items() if k != "epoch"}
        self.writer.finish(names.COMPLETE, scores=scores)


def specification(trials: int, sampler: str) -> StudySpec:
    return StudySpec.model_validate(
        {
            "objectives": {"accuracy": "maximize", "faithfulness": "maximize"},
            "space": {
                "lr": {"float": [0.01, 1], "log": True},
                "reg_weight": {"float": [1e-3, 10], "log": True, "zero": True},
            },
            "fixed": {"network": "tiny"},
            "fidelity": {"max_epochs": 1},
            "budget": {"trials": trials},
            "sampler": sampler,
        }
    )


def measure(nodes: int, slots: int, trials: int, seconds: float, sampler: str, *, ledger: bool) -> dict[str, float]:
    """Run a study of naps and see how busy the slots are while there is work for all of them.

    See :func:`busy`. In the ``startup`` seconds before, processes start, which share this machine's cores here.
    """
    spec = specification(trials, sampler)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(num_cpus=slots)
    try:
        ray.init(address=cluster.address, logging_level=40, log_to_driver=False)
        with tempfile.TemporaryDirectory(prefix="scale") as folder:
            storage = Storage(Path(folder))
            (storage.local / STUDY).mkdir()
            uri = default_tracking_uri(storage.local)
            books = Ledger(uri, STUDY)
            if ledger:
                create_store(uri)
                books.open_study(fingerprint="scale", spec={}, tags={}, artifact_location=None)
            settings = NapSettings(STUDY, storage, uri, seconds=seconds, ledger=ledger)
            search = Search(spec, STUDY, storage.local / STUDY / names.OPTUNA_FILE)
            begun = time.time()
            run_trials(search, settings, Console(file=io.StringIO()), trainable=SleepingTrainable)
            at_once = Capacity(spec.resources).at_once()
            texts = [file.read_text().split() for file in storage.local.rglob("slept")]
            slept = [(float(begin), float(end)) for begin, end in texts]
            told = close_session(books, storage.local / STUDY / "trials", complete=True) if ledger else 0
            assert len(slept) == trials and told == 0, f"{len(slept)} of {trials} trials, {told} not told"
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {**busy(slept, at_once), "startup": round(sorted(slept)[at_once][0] - begun, 1)}


def busy(naps: list[tuple[float, float]], slots: int) -> dict[str, float]:
    """Of (begin, end) of all naps, from the begin of as many more as there are slots to the begin of the last one.

    ``efficiency``: the share of the slots' time that is slept; ``overhead_ms``: the rest of it, per trial.
    """
    begins = sorted(begin for begin, _ in naps)
    first, last = begins[slots], begins[-1]
    slept = sum(max(0.0, min(end, last) - max(begin, first)) for begin, end in naps)
    trials, available = len(naps) - slots - 1, (last - first) * slots
    return {
        "efficiency": round(slept / available, 3),
        "overhead_ms": round(1000 * (available - slept) / trials, 1),
        "trials_per_second": round(trials / (last - first), 2),
    }


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parse.add_argument("--slots", type=int, default=2, help="trials at once on one node")
    parse.add_argument("--trials", type=int, default=1000)
    parse.add_argument("--seconds", type=float, default=1.0, help="that a trial sleeps")
    parse.add_argument("--sampler", default="auto")
    args = parse.parse_args()
    print(f"{args.trials} trials of {args.seconds:g} s, {args.slots} slots a node, {platform.machine()}")
    print(f"{'nodes':>6}{'ledger':>8}{'efficiency':>12}{'overhead/trial':>16}{'trials/s':>10}{'startup':>9}")
    found: dict[bool, dict[int, dict[str, float]]] = {True: {}, False: {}}
    for nodes in args.nodes:
        for ledger in (True, False):
            result = measure(nodes, args.slots, args.trials, args.seconds, args.sampler, ledger=ledger)
            found[ledger][nodes] = result
            print(
                f"{nodes:>6}{'MLflow' if ledger else 'none':>8}{result['efficiency']:>11.1%}"
                f"{result['overhead_ms']:>13.0f} ms{result['trials_per_second']:>10.2f}{result['startup']:>8.1f}s",
                flush=True,
            )
    shown = {
        name: {str(nodes): result[what] for nodes, result in found[ledger].items()}
        for name, what, ledger in (
            ("efficiency", "efficiency", True), ("efficiency_without_ledger", "efficiency", False),
            ("overhead_ms", "overhead_ms", True), ("overhead_ms_without_ledger", "overhead_ms", False),
        )
    }  # fmt: skip
    print(json.dumps({**shown, "trials": args.trials, "seconds": args.seconds, "slots": args.slots}))


if __name__ == "__main__":
    main()
