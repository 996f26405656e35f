"""Replaces a run's scores by those under another protocol.

MLflow deletes no value, so the new ones are logged for the same epochs at a later time: of an epoch the latest counts.
Scores of an epoch whose network is gone become NaN, so that no value of the old protocol stands among the new ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study import metrics, names
from study.ledger.metric_writes import NUMBERS_PER_REQUEST, write_numbers
from study.ledger.records import Number, TrialRecord


def replace_scores(
    client: Any,
    record: TrialRecord,
    protocol: str,
    scores: Mapping[int, Mapping[str, float]],
    files: Sequence[Path] = (),
) -> None:
    """Switch a run to ``protocol``: artifacts first, then numbers and, with the last of them, its tag.

    ``scores``: epoch to ledger names and values; other epochs' scores become NaN. ``files``
    take the place of artifacts of the same name in ``CHECKPOINT_ARTIFACTS``. Raises :class:`SupersededError` where
    another attempt took the run over since ``record`` was read.
    """
    attempt = record.tags.get(names.TAG_ATTEMPT, "")
    for file in files:
        client.log_artifact(record.run_id, str(file), names.CHECKPOINT_ARTIFACTS)
    old_names = sorted(filter(metrics.is_score, record.metrics))
    old = [v for name in old_names for v in client.get_metric_history(record.run_id, name)]
    later = max([int(time.time() * 1000), *(v.timestamp + 1 for v in old)])
    numbers = []
    for epoch in sorted({*(v.step for v in old), *scores}):
        values = {**dict.fromkeys(old_names, math.nan), **scores.get(epoch, {})}
        numbers += [Number(name, value, later, epoch) for name, value in values.items()]
    starts = range(0, len(numbers), NUMBERS_PER_REQUEST)
    *first, last = [numbers[i : i + NUMBERS_PER_REQUEST] for i in starts] or [[]]
    for some in first:
        write_numbers(client, record.run_id, attempt, some)
    write_numbers(client, record.run_id, attempt, last, {names.TAG_PROTOCOL: protocol})
