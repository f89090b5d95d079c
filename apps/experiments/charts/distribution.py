"""The distribution of one metric's values over the units of each variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.experiments.charts.parts import Figure, arms_of, empty, layout_of, style_of
from apps.experiments.result_tables.wording import Scale

# Edges that span more than this factor need a logarithmic axis.
LINEAR_MAX = 1_000.0


def distribution_figure(metric: dict[str, Any], scale: Scale) -> Figure:
    """Return the share of each arm's units per bin, as steps.

    The first bin lies below the first edge, and the last bin starts at the last edge. They have no
    width of their own and are drawn as wide as their neighbours.
    """
    if metric.get("kind") == "ratio":
        return empty(
            "No distribution: a ratio is computed from sums over units, not from values per unit"
        )
    distribution = metric.get("distribution") or {}
    edges, counts = distribution.get("edges") or [], distribution.get("counts") or {}
    if metric.get("kind") == "proportion":
        counts = _zeros_and_ones(metric)
    if not any(sum(row) for row in counts.values()):
        return empty("No distribution: no values yet, or all values are equal")
    if metric.get("kind") == "proportion":
        return _two_bins(metric, counts)
    is_log = edges[0] > 0.0 and edges[-1] / edges[0] > LINEAR_MAX
    starts = _starts(edges, is_log)
    arms = arms_of(metric)
    traces = [
        _trace(arm, arms, starts, edges, counts[arm], scale) for arm in _in_order(counts, arms)
    ]
    axis = {"type": "log"} if is_log else {}
    unit = "%" if scale.is_rate else scale.unit
    layout = layout_of(
        {**axis, "title": {"text": f"value per unit{f', {unit}' if unit else ''}"}},
        {"title": {"text": "share of units, %"}, "rangemode": "tozero"},
    )
    return {"data": traces, "layout": layout}


def _zeros_and_ones(metric: dict[str, Any]) -> dict[str, list[int]]:
    """Return each arm's units without and with the event, from its rate."""
    known = [arm for arm in metric.get("arms", ()) if arm["n"] and arm["mean"] is not None]
    ones = {arm["name"]: round(arm["n"] * arm["mean"]) for arm in known}
    return {arm["name"]: [arm["n"] - ones[arm["name"]], ones[arm["name"]]] for arm in known}


def _two_bins(metric: dict[str, Any], counts: dict[str, list[int]]) -> Figure:
    """Return bars for a proportion, whose values are 0 or 1."""
    arms = arms_of(metric)
    traces = [
        {
            "type": "bar",
            "name": arm,
            "meta": style_of(arm, arms)["meta"],
            "x": ["0", "1"],
            "y": [100.0 * count / sum(counts[arm]) for count in counts[arm]],
            "hovertemplate": "%{y:.3g} % have %{x}<extra>" + arm + "</extra>",
        }
        for arm in _in_order(counts, arms)
    ]
    layout = layout_of(
        {"type": "category", "title": {"text": "value per unit"}},
        {"title": {"text": "share of units, %"}, "rangemode": "tozero"},
        barmode="group",
    )
    return {"data": traces, "layout": layout}


def _in_order(counts: dict[str, list[int]], arms: Sequence[str]) -> list[str]:
    """Return the arms with units, in the experiment's order."""
    known = [arm for arm in arms if sum(counts.get(arm, ()))]
    return known + sorted(arm for arm in set(counts) - set(arms) if sum(counts[arm]))


def _starts(edges: Sequence[float], is_log: bool) -> list[float]:
    """Return the start of each bin, and the end of the last one."""
    if is_log:
        step = (edges[-1] / edges[0]) ** (1.0 / max(1, len(edges) - 1))
        return [edges[0] / step, *edges, edges[-1] * step]
    width = (edges[-1] - edges[0]) / (len(edges) - 1) if len(edges) > 1 else 1.0
    return [edges[0] - width, *edges, edges[-1] + width]


def _trace(
    arm: str,
    arms: Sequence[str],
    starts: Sequence[float],
    edges: Sequence[float],
    counts: Sequence[int],
    scale: Scale,
) -> dict[str, Any]:
    shares = [100.0 * count / sum(counts) for count in counts]
    labels = [_span(edges, place, scale) for place in range(len(counts))]
    style = style_of(arm, arms)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": arm,
        "meta": style["meta"],
        "line": {**style["line"], "shape": "hv"},
        "x": [start * scale.factor for start in starts],
        "y": [*shares, shares[-1]],
        "text": [*labels, labels[-1]],
        "hovertemplate": "%{text}: %{y:.3g} %<extra>" + arm + "</extra>",
    }


def _span(edges: Sequence[float], place: int, scale: Scale) -> str:
    if place == 0:
        return f"below {scale.level(edges[0])}"
    if place == len(edges):
        return f"{scale.level(edges[-1])} or more"
    return f"{scale.level(edges[place - 1])} to {scale.level(edges[place])}"
