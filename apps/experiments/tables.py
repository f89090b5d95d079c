"""How a stored result reads: cells of the table of variants, and what to know before believing it.

Pure: no number is computed here, only worded. What does not exist reads as a dash, never as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apps.experiments.models import Variant

NOTHING = "–"
# The check of shares that holds at every look is slow to speak while units are few; a chi-square
# below this is worth a warning long before.
ONE_LOOK_P_MAX = 1e-4
# Above this share of crossed-over units a reader is warned.
CROSSOVER_MAX = 0.01


@dataclass(frozen=True)
class VariantCells:
    """One row of the table of variants; `fixed_*` are valid at one planned look only."""

    name: str
    version: str
    weight_bp: int
    is_control: bool
    exposed: int | None
    units: int | None
    mean: str
    difference: str
    uplift: str
    interval: str
    p_value: str
    fixed_interval: str
    fixed_p_value: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class Notice:
    """`tone` is `bad` where no verdict may be read, `warn` where one must be careful."""

    tone: str
    text: str


def variant_cells(variants: Sequence[Variant], result: dict[str, Any]) -> list[VariantCells]:
    """Return one row per variant, in the experiment's order, whether or not there is a result."""
    is_rate = result.get("kind") == "proportion"
    arms = {arm["name"]: arm for arm in result.get("arms", ())}
    compared = {comparison["arm"]: comparison for comparison in result.get("comparisons", ())}
    return [
        _cells(variant, arms.get(variant.name), compared.get(variant.name), is_rate)
        for variant in variants
    ]


def _cells(
    variant: Variant, arm: dict[str, Any] | None, found: dict[str, Any] | None, is_rate: bool
) -> VariantCells:
    sequential = found["sequential"] if found else {}
    fixed = found["fixed"] if found else {}
    return VariantCells(
        name=variant.name,
        version=str(variant.version.number),
        weight_bp=variant.weight_bp,
        is_control=variant.is_control,
        exposed=arm["exposed_n"] if arm else None,
        units=arm["n"] if arm else None,
        mean=_level(arm["mean"], is_rate) if arm and arm["n"] else NOTHING,
        difference=_change(found["difference"] if found else None, is_rate),
        uplift=_percent_change(found["uplift"] if found else None),
        interval=_interval(sequential, is_rate),
        p_value=_p_value(sequential.get("p_value")),
        fixed_interval=_interval(fixed, is_rate),
        fixed_p_value=_p_value(fixed.get("p_value")),
        outcome="control" if variant.is_control else found["outcome"] if found else "undecided",
        reason=found["reason"] or sequential.get("reason", "") if found else "",
    )


def _level(value: float | None, is_rate: bool) -> str:
    if value is None:
        return NOTHING
    return f"{value * 100:.4g} %" if is_rate else f"{value:,.5g}"


def _change(value: float | None, is_rate: bool) -> str:
    if value is None:
        return NOTHING
    return f"{value * 100:+.3g} points" if is_rate else f"{value:+,.4g}"


def _percent_change(value: float | None) -> str:
    return NOTHING if value is None else f"{value * 100:+.3g} %"


def _interval(reading: dict[str, Any], is_rate: bool) -> str:
    low, high = reading.get("low"), reading.get("high")
    if low is None or high is None:
        return NOTHING
    scale = 100.0 if is_rate else 1.0
    return f"{low * scale:+,.3g} to {high * scale:+,.3g}"


def _p_value(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.2g}" if value >= 0.001 else f"{value:.1e}"


def notices(result: dict[str, Any], refresh_error: str = "") -> list[Notice]:
    """Return what a reader must know first, the gravest first."""
    quality = result.get("quality", {})
    ratio = result.get("sample_ratio") or {}
    found: list[Notice] = []
    if refresh_error:
        text = f"The last analysis failed; these numbers are older. {refresh_error}"
        found.append(Notice("bad", text))
    if ratio.get("state") == "srm":
        found.append(Notice("bad", f"Sample-ratio mismatch: {ratio['reason']}."))
    elif ratio.get("state") == "unexpected-units":
        found.append(Notice("bad", f"Units where none should be: {ratio['reason']}."))
    elif (ratio.get("p_value") or 1.0) < ONE_LOOK_P_MAX:
        text = f"The shares of units look off (p = {ratio['p_value']:.1e} at this look): "
        found.append(Notice("warn", f"{text}{ratio['reason']}."))
    for name, count in quality.get("unknown_variants", {}).items():
        text = f"{count:,} units met a variant {name}, which this experiment does not have."
        found.append(Notice("bad", text))
    return found + _left_out(quality)


def _left_out(quality: dict[str, Any]) -> list[Notice]:
    found: list[Notice] = []
    exposed, crossed = quality.get("exposed", 0), quality.get("crossed_over", 0)
    if crossed:
        tone = "warn" if crossed > CROSSOVER_MAX * (exposed + crossed) else "busy"
        text = f"{crossed:,} units met more than one variant and are left out."
        found.append(Notice(tone, text))
    waiting = quality.get("waiting", 0)
    if waiting:
        text = f"{waiting:,} of {exposed:,} units have no outcome yet; they are in no mean."
        found.append(Notice("busy", text))
    refused = quality.get("refused_outcomes", {})
    if refused:
        told = "; ".join(f"{reason}: {count:,}" for reason, count in refused.items())
        found.append(Notice("warn", f"Outcomes of this metric that were refused, ever: {told}."))
    return found
