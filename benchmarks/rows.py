"""Trainings that take hours, as rows of a file: each finished one is a line, an interrupted one costs itself only."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from study.config import DataConfig
from study.data import open_dataset

Row = dict[str, Any]
Entry = Any  # what is trained: a frozen dataclass whose fields are among those of its row


def read(file: Path) -> list[Row]:
    """The finished trainings."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def missing(entries: Sequence[Entry], rows: Sequence[Row]) -> list[Entry]:
    """What is still to be trained."""
    names = tuple(asdict(entries[0]))
    done = {tuple(row[name] for name in names) for row in rows}
    return [entry for entry in entries if tuple(getattr(entry, name) for name in names) not in done]


@dataclass(frozen=True)
class _Job:
    """What a worker process does with an entry: nothing where the time is over."""

    run: Callable[[Entry, str], Row]
    source: str
    until: float
    threads: int

    def __call__(self, entry: Entry) -> Row | None:
        torch.set_num_threads(self.threads)
        return None if time.time() > self.until else self.run(entry, self.source)


def add_arguments(parse: argparse.ArgumentParser, file: Path) -> None:
    """Of every benchmark that trains."""
    parse.add_argument("--data", help="folder of CIFAR-100's Parquet files; trains what is missing")
    parse.add_argument("--workers", type=int, default=2, help="trainings at a time")
    parse.add_argument("--minutes", type=float, default=1e6, help="no training starts after so many")
    parse.add_argument("--rows", type=Path, default=file, help="file of finished trainings")


def train(entries: Sequence[Entry], run: Callable[[Entry, str], Row], args: argparse.Namespace) -> None:
    """Train what is missing, ``args.workers`` at a time; ``run(entry, data folder)`` gives a row."""
    threads = max(1, len(os.sched_getaffinity(0)) // args.workers)
    open_dataset(DataConfig(source=args.data))  # decoded once, for all workers
    job = _Job(run, args.data, time.time() + 60 * args.minutes, threads)
    todo, start = missing(entries, read(args.rows)), time.time()
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool, args.rows.open("a") as file:
        for done, row in enumerate(pool.imap_unordered(job, todo), start=1):
            if row is not None:
                file.write(json.dumps(row) + "\n")
                file.flush()
                left = (time.time() - start) / done * (len(todo) - done) / 60
                named = (row[key] for key in (*asdict(todo[0]), "state"))
                print(*named, f"{row['seconds']:.0f} s; {done} of {len(todo)}, about {left:.0f} min left", flush=True)
