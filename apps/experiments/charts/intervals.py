"""The difference of each treatment from control, with both intervals."""

from __future__ import annotations

from typing import Any

from apps.experiments.charts.parts import Figure, empty, layout_of, titled
from apps.experiments.result_tables.wording import Scale


def interval_figure(metric: dict[str, Any], scale: Scale) -> Figure:
    """Return the differences of one metric of a result, in points or in the metric's own unit.

    A guardrail's margin is a line; to pass, the interval must not cross it.
    """
    compared = [c for c in metric.get("comparisons", ()) if c["difference"] is not None]
    if not compared:
        return empty("No difference can be computed yet")
    traces = [
        _trace(compared, "sequential", "valid at every look", "--canary", 4, scale.factor),
        _trace(compared, "fixed", "fixed horizon: one look", "--muted", 1, scale.factor),
    ]
    margin = metric.get("margin")
    if margin is not None:
        sign = -1.0 if metric.get("direction") == "increase" else 1.0
        traces.append(_margin_trace(compared, sign * margin * scale.factor))
    layout = layout_of(
        {"zeroline": True, "zerolinewidth": 2, "rangemode": "tozero", **titled(scale.axis_unit)},
        {"autorange": "reversed", "type": "category"},
    )
    return {"data": traces, "layout": layout}


def _trace(
    compared: list[dict[str, Any]], key: str, name: str, colour: str, width: int, factor: float
) -> dict[str, Any]:
    points = [comparison["difference"] * factor for comparison in compared]
    above, below = [], []
    for comparison, point in zip(compared, points, strict=True):
        low, high = comparison[key]["low"], comparison[key]["high"]
        is_known = low is not None and high is not None
        above.append(high * factor - point if is_known else 0.0)
        below.append(point - low * factor if is_known else 0.0)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "meta": colour,
        "x": points,
        "y": [comparison["arm"] for comparison in compared],
        "marker": {"size": 9 if key == "sequential" else 5},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "thickness": width,
            "width": 4,
        },
        "customdata": [
            [point - less, point + more]
            for point, less, more in zip(points, below, above, strict=True)
        ],
        "hovertemplate": "%{y}: %{x:.4g}, from %{customdata[0]:.4g} to %{customdata[1]:.4g}"
        f"<extra>{name}</extra>",
    }


def _margin_trace(compared: list[dict[str, Any]], at: float) -> dict[str, Any]:
    arms = [comparison["arm"] for comparison in compared]
    # With one arm the line is a point, so that it needs a marker.
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "margin",
        "meta": "--bad",
        "line": {"dash": "dash"},
        "marker": {"symbol": "line-ns-open", "size": 18},
        "x": [at] * len(arms),
        "y": arms,
        "hovertemplate": "margin %{x:.4g}<extra></extra>",
    }
