"""Template filters for numbers: shares in per cent, durations in units, latencies in ms."""

from __future__ import annotations

import json
from datetime import datetime

from django import template

register = template.Library()

# Templates pass "" to a filter for a missing value.
NOTHING = "–"


@register.filter
def share(weight_bp: int | str | None) -> str:
    """Basis points as per cent without trailing zeros: 1250 → 12.5 %."""
    if not isinstance(weight_bp, int):
        return NOTHING
    return f"{weight_bp / 100:.2f}".rstrip("0").rstrip(".") + " %"


@register.filter
def rate(fraction: float | str | None) -> str:
    """A fraction as per cent: 0.0312 → 3.12 %; small ones keep two significant digits."""
    if not isinstance(fraction, int | float):
        return NOTHING
    percent = fraction * 100
    digits = 0 if percent in {0, 100} else 1 if percent >= 10 else 2 if percent >= 0.1 else 4
    return f"{percent:.{digits}f} %"


@register.filter
def ms(duration_us: float | str | None) -> str:
    """Microseconds as milliseconds with three significant digits."""
    if not isinstance(duration_us, int | float):
        return NOTHING
    value = duration_us / 1_000
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} ms"


@register.filter
def per_second(value: float | str | None) -> str:
    if not isinstance(value, int | float):
        return NOTHING
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}"


@register.filter
def duration(seconds: float | str | None) -> str:
    """Seconds in the two largest units: 5400 → 1 h 30 min."""
    if not isinstance(seconds, int | float):
        return NOTHING
    whole = max(0, round(seconds))
    parts = [(whole // 86_400, "d"), (whole // 3_600 % 24, "h"), (whole // 60 % 60, "min")]
    parts.append((whole % 60, "s"))
    words = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(words[:2]) or "0 s"


@register.filter
def figure(value: object) -> str:
    """A metric or a parameter: floats with six significant digits, anything else as it is."""
    if value is None or value == "":
        return NOTHING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@register.filter
def shape(dimensions: list[int]) -> str:
    """A tensor's shape; free dimensions show as a star: [-1, 64] → [∗, 64]."""
    return "[" + ", ".join("∗" if size < 0 else str(size) for size in dimensions) + "]"


@register.filter
def as_json(value: object) -> str:
    """A stored document as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, default=str)


@register.filter
def words(state: str) -> str:
    """An enum's value as words: rolling_back → rolling back."""
    return str(state).replace("_", " ")


@register.filter
def seconds_until(then: datetime | None, now: datetime) -> float | None:
    return None if then is None else (then - now).total_seconds()


@register.filter
def seconds_since(then: datetime | None, now: datetime) -> float | None:
    return None if then is None else (now - then).total_seconds()


@register.inclusion_tag("parts/badge.html")
def badge(state: str) -> dict[str, str]:
    """A coloured badge for a state, phase or verdict; the style sheet has the colours."""
    return {"state": str(state), "tone": TONES.get(str(state), "quiet")}


TONES = {
    **dict.fromkeys(("ready", "succeeded", "pass", "completed", "live", "applied"), "good"),
    **dict.fromkeys(("active", "delivered"), "good"),
    **dict.fromkeys(("retrying", "inactive"), "warn"),
    **dict.fromkeys(("gave_up", "leak", "divergence", "ends", "silent"), "bad"),
    "waiting": "busy",
    **dict.fromkeys(
        ("failed", "fail", "rolled_back", "rolling_back", "refused", "gone", "stale", "ahead"),
        "bad",
    ),
    **dict.fromkeys(("paused", "inconclusive", "draining", "stopping", "behind"), "warn"),
    **dict.fromkeys(("provider-error", "insufficient-sample", "no-data"), "warn"),
    **dict.fromkeys(("baking", "promoting", "running", "preparing", "loading"), "busy"),
    **dict.fromkeys(("warming", "pending"), "busy"),
    "stable": "stable",
    "canary": "canary",
}
