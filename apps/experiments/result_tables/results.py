"""The rows of a result's tables: metrics by variant, and the details of one metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.experiments.result_tables.phases import describe_basis
from apps.experiments.result_tables.wording import (
    NOTHING,
    Scale,
    level_percent,
    p_value,
    percent_change,
    probability,
    reading_interval,
    scale_of,
    uplift_interval,
)

PRIMARY, SECONDARY, GUARDRAIL = "primary", "secondary", "guardrail"
TITLES = {PRIMARY: "Primary", SECONDARY: "Secondary", GUARDRAIL: "Guardrails"}
OUTCOMES = {"better": ("good", "better"), "worse": ("bad", "worse")}
GUARDED = {
    "not-worse": ("good", "within the margin"),
    "worse": ("bad", "worse than the margin"),
    "undecided": ("quiet", "undecided"),
}


@dataclass(frozen=True)
class Cell:
    """One variant of one metric. `interval` and `p` are those of the deciding reading."""

    arm: str
    is_control: bool
    weight_bp: int | None = None
    exposed: int | None = None
    n: int | None = None
    value: str = NOTHING
    sd: str = NOTHING
    difference: str = NOTHING
    uplift: str = NOTHING
    uplift_interval: str = NOTHING
    interval: str = NOTHING
    p: str = NOTHING
    p_holm: str = NOTHING
    q_bh: str = NOTHING
    sequential_interval: str = NOTHING
    sequential_p: str = NOTHING
    fixed_interval: str = NOTHING
    fixed_p: str = NOTHING
    standard_error: str = NOTHING
    test: str = NOTHING
    outcome: str = "undecided"
    tone: str = "quiet"
    reason: str = ""
    bound: str = NOTHING
    chance_to_beat: str = NOTHING
    expected_loss: str = NOTHING
    mann_whitney: str = NOTHING
    variance_reduction: str = NOTHING
    basis: str = ""


@dataclass(frozen=True)
class MetricRow:
    """One metric with a cell for each variant, in the experiment's order."""

    name: str
    role: str
    kind: str
    is_increase_better: bool
    verdict: str
    margin: str
    confidence: str
    is_final: bool
    cells: tuple[Cell, ...]
    prior: str = ""
    has_mann_whitney: bool = False
    has_covariate: bool = False
    has_holm: bool = False

    @property
    def is_guardrail(self) -> bool:
        return self.role == GUARDRAIL

    @property
    def better(self) -> str:
        return "more is better" if self.is_increase_better else "less is better"


@dataclass(frozen=True)
class Group:
    """The metrics of one role, with a heading."""

    title: str
    rows: tuple[MetricRow, ...]


def metric_rows(
    result: Mapping[str, Any], variants: Sequence[str], scales: Mapping[str, Scale]
) -> list[MetricRow]:
    """Return a row for each metric of a result, with a cell for each of `variants`, in order."""
    return [
        _row(entry, variants, scales.get(entry["name"]) or scale_of(entry["kind"]))
        for entry in result.get("metrics", ())
    ]


def group_by_role(rows: Sequence[MetricRow]) -> list[Group]:
    """Return the rows by role; a role without metrics is omitted."""
    by_role = {role: tuple(row for row in rows if row.role == role) for role in TITLES}
    return [Group(TITLES[role], members) for role, members in by_role.items() if members]


def select_metric(rows: Sequence[MetricRow], name: str | None) -> MetricRow | None:
    """Return the row of the metric with this name, else the first row."""
    return next((row for row in rows if row.name == name), rows[0] if rows else None)


def _row(entry: Mapping[str, Any], variants: Sequence[str], scale: Scale) -> MetricRow:
    arms = {arm["name"]: arm for arm in entry.get("arms", ())}
    compared = {comparison["arm"]: comparison for comparison in entry.get("comparisons", ())}
    any_comparison: Mapping[str, Any] = next(iter(compared.values()), {})
    priors = [
        comparison["bayes"]["prior"] for comparison in compared.values() if comparison.get("bayes")
    ]
    return MetricRow(
        name=entry["name"],
        role=entry.get("role", PRIMARY),
        kind=_kind(entry),
        is_increase_better=entry.get("direction", "increase") == "increase",
        verdict=entry.get("verdict") or entry.get("reason") or "",
        margin=scale.amount(entry.get("margin")),
        confidence=level_percent(_deciding(any_comparison)),
        is_final=any_comparison.get("deciding") == "fixed-horizon",
        cells=tuple(_cell(name, arms.get(name), compared.get(name), scale) for name in variants),
        prior=priors[0] if priors else "",
        has_mann_whitney=any(c.get("mann_whitney_p") is not None for c in compared.values()),
        has_covariate=any(c.get("variance_reduction") is not None for c in compared.values()),
        has_holm=any(c.get("p_holm") is not None for c in compared.values()),
    )


def _kind(entry: Mapping[str, Any]) -> str:
    quantile = entry.get("quantile")
    return f"{quantile * 100:g} % quantile" if quantile else str(entry["kind"])


def _deciding(compared: Mapping[str, Any]) -> Mapping[str, Any]:
    reading = "fixed" if compared.get("deciding") == "fixed-horizon" else "sequential"
    deciding: Mapping[str, Any] = compared.get(reading) or {}
    return deciding


def _cell(
    name: str, arm: Mapping[str, Any] | None, comparison: Mapping[str, Any] | None, scale: Scale
) -> Cell:
    arm = arm or {}
    levels: dict[str, Any] = {
        "arm": name,
        "is_control": bool(arm.get("is_control")),
        "weight_bp": arm.get("weight_bp"),
        "exposed": arm.get("exposed"),
        "n": arm.get("n"),
        "value": scale.level(arm.get("mean")) if arm.get("n") else NOTHING,
        "sd": scale.amount(arm.get("sd")),
    }
    if comparison is None:
        outcome = "control" if levels["is_control"] else "no data"
        return Cell(**levels, outcome=outcome)
    deciding = _deciding(comparison)
    tone, outcome, reason, bound = _outcome(comparison, scale)
    bayes = comparison.get("bayes") or {}
    return Cell(
        **levels,
        **_readings(comparison, scale),
        difference=scale.change(comparison.get("difference")),
        uplift=percent_change(comparison.get("uplift")),
        uplift_interval=uplift_interval(deciding),
        p_holm=p_value(comparison.get("p_holm")),
        q_bh=p_value(comparison.get("q_bh")),
        standard_error=scale.amount(comparison.get("standard_error")),
        test=str(comparison.get("test") or NOTHING).replace("-", " "),
        outcome=outcome,
        tone=tone,
        reason=reason,
        bound=bound,
        chance_to_beat=probability(bayes.get("chance_to_beat")),
        expected_loss=scale.amount(bayes.get("expected_loss")),
        mann_whitney=p_value(comparison.get("mann_whitney_p")),
        variance_reduction=probability(comparison.get("variance_reduction")),
        basis=describe_basis(comparison, scale),
    )


def _readings(comparison: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    sequential, fixed = comparison.get("sequential") or {}, comparison.get("fixed") or {}
    deciding = _deciding(comparison)
    return {
        "interval": reading_interval(deciding, scale),
        "p": p_value(deciding.get("p_value")),
        "sequential_interval": reading_interval(sequential, scale),
        "sequential_p": p_value(sequential.get("p_value")),
        "fixed_interval": reading_interval(fixed, scale),
        "fixed_p": p_value(fixed.get("p_value")),
    }


def _outcome(comparison: Mapping[str, Any], scale: Scale) -> tuple[str, str, str, str]:
    """Return tone, word, reason and, for a guardrail, the bound to compare with its margin."""
    reason = comparison.get("reason") or _deciding(comparison).get("reason") or ""
    judged = comparison.get("non_inferiority")
    if judged is None:
        tone, word = OUTCOMES.get(comparison.get("outcome", ""), ("quiet", "undecided"))
        return tone, word, reason, NOTHING
    tone, word = GUARDED.get(judged["state"], ("quiet", "undecided"))
    if judged.get("deteriorated") and judged["state"] != "worse":
        tone, word = "warn", f"{word}, but proven worse"
    return tone, word, judged.get("reason") or reason, scale.change(judged.get("bound"))
