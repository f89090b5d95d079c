"""The rows of breakdowns by dimension and of the hold-out, which do not affect the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.experiments.result_tables.wording import NOTHING, Scale, p_value, scale_of


@dataclass(frozen=True)
class LevelRow:
    level: str
    arm: str
    n: int | None
    control_n: int | None
    difference: str
    interval: str
    p: str
    p_adjusted: str
    is_significant: bool
    reason: str


@dataclass(frozen=True)
class Breakdown:
    dimension: str
    rows: tuple[LevelRow, ...]


@dataclass(frozen=True)
class HeldOut:
    """Units that get stable in every experiment. `means` are (metric, hold-out, control)."""

    units: int
    means: tuple[tuple[str, str, str], ...]


def breakdowns(result: Mapping[str, Any], metric: str, scale: Scale) -> list[Breakdown]:
    """Return the breakdowns of one metric, in the order of the result."""
    return [
        Breakdown(
            breakdown["dimension"],
            tuple(
                _level_row(level["level"], compared, scale)
                for level in breakdown["levels"]
                for compared in level["comparisons"]
            ),
        )
        for breakdown in result.get("breakdowns", ())
        if breakdown["metric"] == metric
    ]


def _level_row(level: str, compared: Mapping[str, Any], scale: Scale) -> LevelRow:
    return LevelRow(
        level=level or "(none)",
        arm=compared["arm"],
        n=compared.get("n"),
        control_n=compared.get("control_n"),
        difference=scale.change(compared.get("difference")),
        interval=scale.interval(compared.get("low"), compared.get("high")),
        p=p_value(compared.get("p_value")),
        p_adjusted=p_value(compared.get("p_adjusted")),
        is_significant=bool(compared.get("is_significant")),
        reason=compared.get("reason") or "",
    )


def held_out(result: Mapping[str, Any], scales: Mapping[str, Scale]) -> HeldOut | None:
    """Return the values of the hold-out, or None if the experiment has no hold-out units."""
    holdout = result.get("holdout") or {}
    if not holdout.get("units"):
        return None
    means = holdout.get("means") or {}
    rows = []
    for entry in result.get("metrics", ()):
        scale = scales.get(entry["name"]) or scale_of(entry["kind"])
        arms = entry.get("arms", ())
        control: Mapping[str, Any] = next((arm for arm in arms if arm.get("is_control")), {})
        control_mean = control.get("mean") if control.get("n") else None
        rows.append(
            (entry["name"], scale.level(means.get(entry["name"])), scale.level(control_mean))
        )
    return HeldOut(holdout["units"], tuple(rows))


def guardrail_tone(states: list[str | None]) -> tuple[str, str]:
    """Return tone and text for all guardrails of an experiment."""
    if not states:
        return "quiet", NOTHING
    if "worse" in states:
        return "bad", f"{states.count('worse')} worse"
    if all(state == "not-worse" for state in states):
        return "good", "all hold"
    return "quiet", "undecided"
