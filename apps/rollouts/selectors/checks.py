"""Checks of a rollout for its page: the observed value beside the control or bound.

The evidence of a result differs by the kind of check. This module selects the main values of each
kind; the decision log has all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apps.models.templatetags.interlock import NOTHING, figure, ms, rate, share
from apps.rollouts import check_kinds as kinds
from apps.rollouts.check_kinds import KINDS, CheckDocument
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.plans import PlanDocument, from_json

Evidence = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A value and its note."""

    value: str = NOTHING
    note: str = ""


@dataclass(frozen=True)
class PercentileView:
    """One latency percentile of both versions, and the difference with bounds."""

    name: str
    canary: str
    stable: str
    difference: str
    bounds: str


@dataclass(frozen=True)
class CheckView:
    """A check of a step; without a verdict it has no result yet."""

    name: str
    step_number: int
    kind: str = ""
    asks: str = ""
    mode: str = ""
    verdict: str = ""
    reason: str = ""
    rule: str = ""
    at: datetime | None = None
    observed: Cell = Cell()
    compared: Cell = Cell()
    percentiles: tuple[PercentileView, ...] = ()


def checks_of(rollout: Rollout) -> list[CheckView]:
    """Return the checks of the current step in plan order, then those of earlier steps."""
    plan = from_json(rollout.plan_document) if rollout.plan_document else None
    rows = rollout.evaluations.order_by("check_name", "-id").distinct("check_name")
    latest = {row.check_name: row for row in rows}
    current = _checks_of_step(plan, rollout.step_index) if rollout.is_live else []
    views = []
    for check in current:
        row = latest.pop(check.label, None)
        views.append(_view(plan, row) if row else _pending_view(check, rollout.step_index))
    return [*views, *(_view(plan, row) for row in latest.values())]


def _checks_of_step(plan: PlanDocument | None, step_index: int) -> list[CheckDocument]:
    if plan is None or not 0 <= step_index < len(plan.steps):
        return []
    return list(plan.steps[step_index].check_documents)


def _pending_view(check: CheckDocument, step_index: int) -> CheckView:
    return CheckView(
        name=check.label,
        step_number=step_index + 1,
        kind=check.check,
        asks=check.kind.question,
        mode=check.effective_mode,
    )


def _view(plan: PlanDocument | None, row: Evaluation) -> CheckView:
    checks = _checks_of_step(plan, row.step_index)
    check = next((each for each in checks if each.label == row.check_name), None)
    if check is None and row.check_name in KINDS:
        check = CheckDocument(check=row.check_name)
    observed, compared = sides_of(check, row.evidence)
    return CheckView(
        name=row.check_name,
        step_number=row.step_index + 1,
        kind=check.check if check else "",
        asks=check.kind.question if check else "",
        mode=check.effective_mode if check else "",
        verdict=row.verdict,
        reason=row.reason,
        rule=row.rule,
        at=row.at,
        observed=observed,
        compared=compared,
        percentiles=tuple(map(_percentile, row.evidence.get("percentiles") or ())),
    )


Sides = tuple[Cell, Cell]


def sides_of(check: CheckDocument | None, evidence: Evidence) -> Sides:
    """Return the value of the canary, and the value of stable or the bound."""
    if check is None or not evidence:
        return Cell(), Cell()
    return SIDES.get(check.check, _rates)(check, evidence)


def _rates(_: CheckDocument, evidence: Evidence) -> Sides:
    if evidence.get("absolute"):
        bound = NOTHING if "deciders" in evidence else "fixed bound"
        return _count(evidence, "n"), Cell(bound, "no traffic on stable")
    return _rate(evidence, "canary"), _rate(evidence, "control")


def _rate(evidence: Evidence, side: str) -> Cell:
    value = evidence.get(f"{side}_rate")
    if value is None:
        return _count(evidence, f"{side}_n")
    return Cell(rate(value), f"{evidence[f'{side}_events']:,} of {evidence[f'{side}_n']:,}")


def _count(evidence: Evidence, name: str) -> Cell:
    count = evidence.get(name)
    return Cell() if count is None else Cell(f"n={count:,}")


def _latency(check: CheckDocument, evidence: Evidence) -> Sides:
    p95: Evidence = evidence.get("p95") or {}
    basis = {name: evidence[name] for name in ("absolute", "deciders") if name in evidence}
    observed, compared = _rates(check, {**p95, **basis})
    if p95.get("canary_rate") is not None:
        note = "of {:,} above the reference p95"
        return (
            Cell(observed.value, note.format(p95["canary_n"])),
            Cell(compared.value, note.format(p95["control_n"])),
        )
    if "reference_requests" in evidence:
        return Cell(), Cell(f"n={evidence['reference_requests']:,}", "for the reference latency")
    return (_count(evidence, "n") if evidence.get("absolute") else observed), compared


def _sample_ratio(_: CheckDocument, evidence: Evidence) -> Sides:
    if "leaked" in evidence:
        return Cell(f"{evidence['leaked']:,}", f"of {evidence['n']:,}"), Cell("0", "expected")
    if "expected" not in evidence:
        return _count(evidence, "n"), Cell()
    expected, n = evidence["expected"], evidence["n"]
    return (
        Cell(f"{evidence['observed']:,}", f"of {n:,} units"),
        Cell(f"{expected:,.0f}", f"expected, {rate(expected / n)}"),
    )


def _smoke(_: CheckDocument, evidence: Evidence) -> Sides:
    if "errors" not in evidence:
        return Cell(), Cell()
    needed = evidence.get("requests_min") or 0
    return (
        Cell(f"{evidence['errors']:,} failed", f"of {evidence['n']:,} by version number"),
        Cell("0 failed", f"of at least {needed:,}" if needed else "allowed"),
    )


def _error_objective(check: CheckDocument, evidence: Evidence) -> Sides:
    return _count(evidence, "n"), Cell(share(check.setting("limit_bp")), "errors, maximum")


def _latency_objective(check: CheckDocument, evidence: Evidence) -> Sides:
    name = f"p{check.setting('quantile_permille') / 10:g}"
    return (
        Cell(ms(evidence.get("quantile_us")), f"{name}, n={evidence.get('n', 0):,}"),
        Cell(ms(check.setting("limit_us")), f"{name}, maximum"),
    )


def _shadow_agreement(check: CheckDocument, evidence: Evidence) -> Sides:
    compared, errors = evidence.get("compared") or 0, evidence.get("errors") or 0
    bound = Cell(share(check.setting("agreement_min_bp")), "agreement, minimum")
    if not compared + errors:
        return Cell("n=0"), bound
    differing = max(evidence["flips"], evidence["beyond_tolerance"]) + errors
    agreeing = 1 - differing / (compared + errors)
    return Cell(rate(agreeing), f"agreement, {compared + errors:,} rows"), bound


def _shadow_accuracy(_: CheckDocument, evidence: Evidence) -> Sides:
    if not evidence.get("n"):
        return Cell(f"{evidence.get('kept', 0):,} pairs", "no labels yet"), Cell()
    difference = evidence["difference"]
    word = "less" if difference >= 0 else "more"
    return (
        Cell(rate(abs(difference)), f"{word} accurate, of {evidence['n']:,} pairs"),
        Cell(rate(evidence["margin"]), "less accurate, maximum"),
    )


def _outcome(_: CheckDocument, evidence: Evidence) -> Sides:
    if "canary_mean" not in evidence:
        return Cell(), Cell()
    return (
        Cell(figure(evidence["canary_mean"]), _bounds_of_outcome(evidence)),
        Cell(
            figure(evidence["control_mean"]),
            f"n={evidence['control_n']:,}, margin {figure(evidence['margin'])}",
        ),
    )


def _bounds_of_outcome(evidence: Evidence) -> str:
    note = f"n={evidence['canary_n']:,}"
    if evidence.get("low") is None or evidence.get("high") is None:
        return note
    return f"{note}, better by {evidence['low']:.3g} to {evidence['high']:.3g}"


def _prometheus(check: CheckDocument, evidence: Evidence) -> Sides:
    word = "maximum" if "at_most" in check.settings else "minimum"
    return Cell(figure(evidence.get("value"))), Cell(figure(evidence.get("bound")), word)


def _webhook(_: CheckDocument, evidence: Evidence) -> Sides:
    return Cell(note=f"“{evidence['said']}”" if evidence.get("said") else ""), Cell()


SIDES: dict[str, Callable[[CheckDocument, Evidence], Sides]] = {
    kinds.LATENCY: _latency,
    kinds.SAMPLE_RATIO: _sample_ratio,
    kinds.SMOKE: _smoke,
    kinds.ERROR_OBJECTIVE: _error_objective,
    kinds.LATENCY_OBJECTIVE: _latency_objective,
    kinds.SHADOW_AGREEMENT: _shadow_agreement,
    kinds.SHADOW_ACCURACY: _shadow_accuracy,
    kinds.OUTCOME: _outcome,
    kinds.PROMETHEUS: _prometheus,
    kinds.WEBHOOK: _webhook,
}


def _percentile(row: Mapping[str, Any]) -> PercentileView:
    low, high = row.get("low_us"), row.get("high_us")
    return PercentileView(
        name=f"p{row['permille'] / 10:g}",
        canary=ms(row.get("canary_us")),
        stable=ms(row.get("control_us")),
        difference=_signed(row.get("difference_us")),
        bounds=f"{_signed(low)} to {_signed(high)}" if (low, high) != (None, None) else NOTHING,
    )


def _signed(duration_us: float | None) -> str:
    if duration_us is None:
        return "unknown"
    return ("+" if duration_us > 0 else "−" if duration_us < 0 else "") + ms(abs(duration_us))
