"""What a study will cost, before it starts: a few real steps of each network, multiplied out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from study.config import TrialConfig
from study.space import Choice
from study.spec import StudySpec

_TIMED_IMAGES = 16  # a batch small enough to time a large network on a laptop; cost grows with the images
_REPEATS = 3


@dataclass(frozen=True)
class NetworkCost:
    """Seconds per training image without and with the regularizer, and per scored image."""

    network: str
    plain: float
    regularized: float
    scored: float


@dataclass(frozen=True)
class Plan:
    """``trial_seconds`` per network is for a regularized trial; the total supposes networks equally often."""

    trials: int
    epochs: int
    concurrent: int
    device: str
    train_images: int
    costs: tuple[NetworkCost, ...]
    trial_seconds: dict[str, float]
    time_budget: float | None

    @property
    def trial_hours(self) -> float:
        """Hours of all trials, one after the other."""
        return self.trials * sum(self.trial_seconds.values()) / len(self.trial_seconds) / 3600

    @property
    def wall_hours(self) -> float:
        mean = sum(self.trial_seconds.values()) / len(self.trial_seconds)
        return math.ceil(self.trials / self.concurrent) * mean / 3600

    def lines(self) -> list[str]:
        """For people to read."""
        text = [
            f"{self.trials} trials × {self.epochs} epochs × {self.train_images} images, "
            f"{self.concurrent} at once, timed on {self.device}"
        ]
        for cost in self.costs:
            text.append(
                f"  {cost.network}: {1000 * cost.plain:.2f} ms per training image plain, "
                f"{1000 * cost.regularized:.2f} regularized, {1000 * cost.scored:.2f} per scored image; "
                f"about {duration(self.trial_seconds[cost.network])} a trial"
            )
        text.append(f"estimated {self.trial_hours:.2g} trial-hours, {duration(3600 * self.wall_hours)} on the clock")
        if self.time_budget is not None:
            ends = "time" if self.time_budget < 3600 * self.wall_hours else "trials"
            text.append(f"budget: {self.trials} trials or {duration(self.time_budget)}; the {ends} end it first")
        return text


def duration(seconds: float) -> str:
    """A length of time as people say it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def estimate(spec: StudySpec, *, train_images: int, validation_images: int, n_classes: int, concurrent: int) -> Plan:
    """Time a few steps of every network of the space on this machine and multiply out.

    ``concurrent`` is how many trials the cluster runs at once. Other machines are slower or faster: the plan says
    what it was timed on.
    """
    import torch

    from study.trial import default_device

    device = default_device()
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(spec.resources.cpus)) if device.type == "cpu" else threads)
    try:
        costs, seconds = [], {}
        parameter = spec.space.get("network")
        networks = parameter.choice if isinstance(parameter, Choice) else (spec.fixed["network"],)
        base = spec.first_points()[0]
        for network in networks:
            config = spec.trial_config({**base, "network": network})
            cost = _time(config, n_classes, device)
            costs.append(cost)
            scored = min(config.evaluation.images or validation_images, validation_images)
            seconds[config.network] = (
                config.epochs * (train_images * cost.regularized + validation_images * cost.plain / 3)
                + (1 + len(config.rungs)) * scored * cost.scored
            )
    finally:
        torch.set_num_threads(threads)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({spec.resources.cpus:g} cores a trial)"
    return Plan(
        trials=spec.budget.trials,
        epochs=spec.fidelity.max_epochs,
        concurrent=concurrent,
        device=name,
        train_images=train_images,
        costs=tuple(costs),
        trial_seconds=seconds,
        time_budget=spec.budget.time,
    )


def _time(config: TrialConfig, n_classes: int, device: object) -> NetworkCost:
    import torch

    from study.faithfulness import evaluate_faithfulness
    from study.networks import build
    from study.training.regularizer import regularized_step

    assert isinstance(device, torch.device)
    network = build(config.network, n_classes).to(device)
    n = config.batch_size if device.type == "cuda" else min(config.batch_size, _TIMED_IMAGES)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, n_classes, (n,))
    x, y = torch.randn(n, 3, 32, 32, device=device), labels.to(device)

    def step(weight: float) -> None:
        network.zero_grad()
        regularized_step(network, x, y, error="cosine", weight=weight)

    def score() -> None:
        evaluate_faithfulness(
            network, images, labels, mean=(0.5,) * 3, std=(0.25,) * 3, config=config.evaluation, device=device
        )

    return NetworkCost(
        network=config.network,
        plain=_seconds(lambda: step(0.0), device.type) / n,
        regularized=_seconds(lambda: step(1.0), device.type) / n,
        scored=_seconds(score, device.type) / n,
    )


def _seconds(work: Callable[[], None], device: str) -> float:
    import torch

    work()  # warm-up: allocations, algorithm choice
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times)
