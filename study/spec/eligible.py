"""Who can be on a front: one rule, asked by the search and by everything that reads the ledger.

A trial can be on a front if it is complete, finite in every objective, explained (hardly any of its maps is
undefined) and within the specification's constraints. See docs/decisions/0024-who-can-be-on-a-front.md.

Reports are mappings from a metric's ledger name to its last value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from study import names
from study.errors import ArtifactError
from study.metrics import MAX_UNDEFINED_SHARE, OBJECTIVES, UNDEFINED_SHARE, Metric

if TYPE_CHECKING:
    from study.spec.terms import Constraint

#: What a trial can be kept off a front for, by name.
CONSTRAINED: dict[str, Metric] = {**OBJECTIVES, UNDEFINED_SHARE.name: UNDEFINED_SHARE}
_LISTED = 5  # trials whose reasons one line holds
_UNITS = ("%", "nats", "pp")  # those that are said behind a number


def why_not_eligible(
    state: str,
    values: Sequence[float],
    report: Mapping[str, float],
    targets: Sequence[Metric],
    constraints: Mapping[str, Constraint],
) -> str:
    """Why a trial cannot be on a front, e.g. ``accuracy 1.2 % is below 5``; empty where it can.

    ``state`` is one of ``names.STATES``; ``values`` are of ``targets``, NaN where a trial has none. A constrained
    metric that the report lacks, or has as NaN or infinity, keeps the trial off the front.
    """
    if state != names.COMPLETE:
        return f"it is not complete ({state})"
    reasons = [_not_finite(m.name) for m, v in zip(targets, values, strict=True) if not math.isfinite(v)]
    broken = violations(report, constraints)
    for name, constraint in constraints.items():
        value = report.get(CONSTRAINED[name].ledger_name, math.nan)
        if not math.isfinite(value):
            reasons.append(_not_finite(name))
        elif broken[name] > 0:
            low = constraint.min is not None and value < constraint.min
            bound, side = (constraint.min, "below") if low else (constraint.max, "above")
            assert bound is not None
            unit = f" {CONSTRAINED[name].short_unit}" if CONSTRAINED[name].short_unit in _UNITS else ""
            reasons.append(f"{name} {_apart(value, bound)}{unit} is {side} {bound:g}")
    if broken.get(UNDEFINED_SHARE.name, 0.0) > 0:
        share = report[UNDEFINED_SHARE.ledger_name]
        known = f"{_apart(share, MAX_UNDEFINED_SHARE)} %" if math.isfinite(share) else "an unknown share"
        reasons.append(f"{known} of its maps are undefined (at most {MAX_UNDEFINED_SHARE:g} %)")
    return "; ".join(dict.fromkeys(reasons))


def violations(report: Mapping[str, float], constraints: Mapping[str, Constraint]) -> dict[str, float]:
    """By how much a report breaks each constraint, by metric: at most 0 where it is kept, as Optuna has it.

    The share of undefined maps is a constraint wherever it is reported. NaN and infinity are broken without end;
    metrics that the report lacks are left out.
    """
    found = {}
    for name, constraint in constraints.items():
        value = report.get(CONSTRAINED[name].ledger_name)
        if value is not None:
            found[name] = constraint.violation(value) if math.isfinite(value) else math.inf
    share = report.get(UNDEFINED_SHARE.ledger_name)
    if share is not None:
        found[UNDEFINED_SHARE.name] = share - MAX_UNDEFINED_SHARE if math.isfinite(share) else math.inf
    return found


def constraints_of(study: str, spec: Mapping[str, Any]) -> dict[str, Constraint]:
    """The constraints of a specification as the ledger holds it: plain values.

    Raises :class:`ArtifactError` where they are none of this version.
    """
    from study.spec.terms import Constraint

    given = spec.get("constraints") or {}
    try:
        unknown = [name for name in given if name not in OBJECTIVES]
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}")
        return {name: Constraint.model_validate(value) for name, value in given.items()}
    except (ValueError, AttributeError, TypeError):
        raise ArtifactError(
            f"study {study!r}: its specification in the ledger has constraints that this version cannot read: {given}; "
            "was another version in use?"
        ) from None


def measured(report: Mapping[str, float]) -> dict[str, float]:
    """The part of a report that decides who is eligible, by metric name: what a book of trials has to keep."""
    return {name: report[m.ledger_name] for name, m in CONSTRAINED.items() if m.ledger_name in report}


def as_report(found: Mapping[str, float]) -> dict[str, float]:
    """The reverse of :func:`measured`."""
    return {CONSTRAINED[name].ledger_name: value for name, value in found.items() if name in CONSTRAINED}


def reasons_line(reasons: Sequence[tuple[int, str]]) -> str:
    """``2 complete trials are not eligible: trial 4 (accuracy 1.2 % is below 5); trial 7 (...)``.

    ``reasons``: number and reason of every complete trial that is not eligible. Empty where there are none.
    """
    if not reasons:
        return ""
    n = len(reasons)
    listed = [f"trial {number} ({reason})" for number, reason in reasons[:_LISTED]]
    listed += [f"and {n - _LISTED} more"] if n > _LISTED else []
    return f"{n} complete trial{' is' if n == 1 else 's are'} not eligible: {'; '.join(listed)}"


def empty_line(reasons: Sequence[tuple[int, str]]) -> str:
    """Why a front is empty; ``reasons`` as for :func:`reasons_line`."""
    return reasons_line(reasons) or "no trial is complete"


def _not_finite(name: str) -> str:
    return f"{name} is not a finite number"


def _apart(value: float, bound: float) -> str:
    """With as few digits, three at least, as show on which side of ``bound`` it lies."""
    for digits in range(3, 17):
        text = f"{value:.{digits}g}"
        if (float(text) > bound) == (value > bound) and (float(text) < bound) == (value < bound):
            return text
    return repr(value)
