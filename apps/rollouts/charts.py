"""Builds Plotly figures as plain data from rows. It must not query, nor contain colours.

A trace's `meta` names a colour variable of the style sheet, for the light and the dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from apps.rollouts.check_kinds import ERROR_RATE, LATENCY, UNANSWERED
from apps.rollouts.models import Evaluation, RolloutEvent
from apps.rollouts.selectors.telemetry import Point
from contract.routing import BASELINE, CANARY, STABLE

Figure = dict[str, Any]
Trace = dict[str, Any]
Value = Callable[[Point], float | None]

SERIES = ("--series-3", "--series-4", "--series-5", "--series-6")
ARM_COLOURS = {STABLE: "--stable", BASELINE: "--series-4", CANARY: "--canary"}
# The chart is clipped at this many decades: beyond it evidence is overwhelming either way.
DECADES_MAX = 12.0


def colours_of(arms: Iterable[str], stable: str | None, canary: str | None) -> dict[str, str]:
    """Return a colour for each version: fixed for stable and canary, by position for the others."""
    fixed = {canary: "--canary", stable: "--stable"}
    others = sorted(set(arms) - set(fixed))
    return {
        **{arm: SERIES[index % len(SERIES)] for index, arm in enumerate(others)},
        **{arm: colour for arm, colour in fixed.items() if arm is not None},
    }


def draw_requests(points: Sequence[Point], colours: Mapping[str, str], prefix: str = "") -> Figure:
    """Requests per second, stacked by arm."""
    traces = [
        _line(f"{prefix}{arm}", arm_points, lambda p: p.per_second, colours[arm], stackgroup="all")
        for arm, arm_points in _by_arm(_filled(points))
    ]
    return _figure(traces, "requests/s", hoverformat=",.1f")


def draw_latency(points: Sequence[Point], colours: Mapping[str, str], prefix: str = "") -> Figure:
    """p95 of each arm as a line and p50 as a dotted one, in milliseconds."""
    traces = []
    for arm, arm_points in _by_arm(points):
        name, ink = f"{prefix}{arm}", colours[arm]
        traces.append(_line(f"{name} p95", arm_points, lambda p: _ms(p.p95_us), ink))
        traces.append(_line(f"{name} p50", arm_points, lambda p: _ms(p.p50_us), ink, dash="dot"))
    return _figure(traces, "latency, ms", hoverformat=",.2f")


def draw_error_rate(
    points: Sequence[Point], colours: Mapping[str, str], prefix: str = ""
) -> Figure:
    """Errors per request of each arm, in per cent."""
    traces = [
        _line(f"{prefix}{arm}", arm_points, lambda p: _percent(p.error_rate), colours[arm])
        for arm, arm_points in _by_arm(points)
    ]
    return _figure(traces, "errors, %", hoverformat=".2f")


def draw_share(points: Sequence[Point], events: Sequence[RolloutEvent], until: datetime) -> Figure:
    """The canary's observed share of units beside the configured one, in per cent."""
    observed = []
    for at in sorted({point.at for point in points}):
        now = {point.arm: point.units for point in points if point.at == at}
        total = sum(now.get(arm, 0) for arm in (STABLE, BASELINE, CANARY))
        observed.append((at, 100 * now.get(CANARY, 0) / total if total else None))
    configured = [(event.at, event.weight_bp / 100) for event in sorted(events, key=_timestamp)]
    if configured:
        configured.append((until, configured[-1][1]))
    traces = [
        _trace("observed", observed, "--canary"),
        _trace("configured", configured, "--muted", line={"shape": "hv", "dash": "dash"}),
    ]
    return _figure(traces, "canary share of units, %", hoverformat=".1f")


def draw_evidence(evaluations: Sequence[Evaluation]) -> Figure:
    """log10 of the evidence of harm and of safety by check, with the thresholds that decide."""
    traces = []
    inks = {ERROR_RATE: "--canary", LATENCY: "--series-3", UNANSWERED: "--series-4"}
    for check, ink in inks.items():
        rows = [row for row in evaluations if row.check_name == check]
        harm = [(row.at, _decades(_harm(row.evidence))) for row in rows]
        safety = [(row.at, _decades(row.evidence.get("log_e_mirror"))) for row in rows]
        if any(value is not None for _, value in harm):
            traces.append(_trace(f"{check}: harm", harm, ink))
        if any(value is not None for _, value in safety):
            traces.append(_trace(f"{check}: safety", safety, ink, line={"dash": "dot"}))
    traces += _thresholds(evaluations)
    return _figure(traces, "evidence, log10 E", hoverformat=".2f", floor=None)


def _harm(evidence: Mapping[str, Any]) -> float | None:
    """Return the largest log e-value that can roll back; None without one."""
    names = ("log_e_margin", "log_e_zero_beyond", "log_e_absolute")
    values = [evidence[name] for name in names if evidence.get(name) is not None]
    return max(values) if values else None


def _thresholds(evaluations: Sequence[Evaluation]) -> list[Trace]:
    if not evaluations:
        return []
    span = (evaluations[0].at, evaluations[-1].at)
    levels = {"rolls back": ("log_e_needed", "--bad"), "proves safe": ("log_e_promote", "--good")}
    traces = []
    for name, (key, ink) in levels.items():
        known = [value for row in evaluations if (value := _threshold(row.evidence, key))]
        if known:
            level = _decades(known[-1])
            line = {"dash": "dash", "width": 1}
            traces.append(_trace(name, [(at, level) for at in span], ink, line=line))
    return traces


def _threshold(evidence: Mapping[str, Any], key: str) -> float | None:
    """Return a threshold; latency stores it with each of its percentiles."""
    inner = evidence.get("p95")
    value = evidence.get(key, inner.get(key) if isinstance(inner, dict) else None)
    return float(value) if value is not None else None


def _decades(log_e: float | None) -> float | None:
    """Convert a natural to a decimal logarithm, clipped to DECADES_MAX."""
    if log_e is None or math.isnan(log_e):
        return None
    return max(-DECADES_MAX, min(DECADES_MAX, log_e / math.log(10)))


def _by_arm(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    arms = sorted({point.arm for point in points}, key=lambda arm: (len(arm), arm))
    return [(arm, [point for point in points if point.arm == arm]) for arm in arms]


def _filled(points: Sequence[Point]) -> list[Point]:
    """Add the zeros that a stacked chart needs where an arm had no window."""
    known = {(point.at, point.arm) for point in points}
    spans = {point.at: point.span_s for point in points}
    arms = {point.arm for point in points}
    missing = [
        Point(at=at, arm=arm, span_s=span_s)
        for at, span_s in spans.items()
        for arm in arms
        if (at, arm) not in known
    ]
    return sorted([*points, *missing], key=_timestamp)


def _line(
    name: str,
    points: Sequence[Point],
    value: Callable[[Point], float | None],
    ink: str,
    **more: Any,
) -> Trace:
    line = {"dash": more.pop("dash")} if "dash" in more else {}
    return _trace(name, [(point.at, value(point)) for point in points], ink, line=line, **more)


def _trace(
    name: str, values: Sequence[tuple[datetime, float | None]], ink: str, **more: Any
) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines" if len(values) > 1 else "markers",
        "name": name,
        "x": [at.isoformat() for at, _ in values],
        "y": [None if value is None else round(value, 4) for _, value in values],
        "meta": ink,
        **more,
    }


def _figure(
    traces: list[Trace], title: str, *, hoverformat: str, floor: str | None = "tozero"
) -> Figure:
    axis: dict[str, Any] = {"title": {"text": title}, "hoverformat": hoverformat}
    if floor is not None:
        axis["rangemode"] = floor
    return {
        "data": traces,
        "layout": {
            **_emptiness(traces),
            "margin": {"l": 54, "r": 10, "t": 8, "b": 42},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "hovermode": "x unified",
            "xaxis": {"type": "date", "visible": _has_values(traces)},
            "yaxis": axis,
            # Zoom and hidden traces stay when new data arrives.
            "uirevision": "kept",
        },
    }


def _has_values(traces: Sequence[Trace]) -> bool:
    return any(value is not None for trace in traces for value in trace["y"])


def _emptiness(traces: Sequence[Trace]) -> dict[str, Any]:
    """Return a text for the middle of the chart in place of empty axes."""
    if _has_values(traces):
        return {}
    place = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    return {"annotations": [{"text": "No data yet", **place}]}


def _timestamp(row: Any) -> datetime:
    at: datetime = row.at
    return at


def _ms(duration_us: float | None) -> float | None:
    return None if duration_us is None else duration_us / 1_000


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
