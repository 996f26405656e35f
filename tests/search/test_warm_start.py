"""What a training that an earlier version recorded differs in from one that would be made now."""

from __future__ import annotations

import dataclasses

from study.config import TrialConfig
from study.ledger.records import flatten, parse
from study.search.warm_start import _changed

CONFIG = TrialConfig("tiny", 8, 0.1, reg_weight=0.5)


def test_a_parameter_that_was_not_recorded_had_its_default() -> None:
    recorded = {k: parse(v) for k, v in flatten(CONFIG.to_dict()).items()}
    for name in ("norm_lr_multiple", "initialization", "crop_mode", "reg_warmup_epochs"):
        del recorded[name]
    assert _changed(CONFIG, recorded) == set()
    assert _changed(dataclasses.replace(CONFIG, seed=7), recorded) == set()
    changed = dataclasses.replace(CONFIG, crop_mode="reflect", lr=0.2)
    assert _changed(changed, recorded) == {"crop_mode", "lr"}
