"""Figures of a result page: a stored result in, Plotly JSON out.

A trace's `meta` names the page's colour variable, so that light and dark both fit. What has no
number is left out of a figure, and an empty figure says why it is empty.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

Figure = dict[str, Any]

COLOURS = ("--stable", "--canary", "--series-3", "--series-4", "--series-5", "--series-6")
DASHES = ("solid", "dash", "dot", "dashdot")
SIDE = {"l": 8, "r": 16, "t": 8, "b": 40}


def interval_figure(result: dict[str, Any]) -> Figure:
    """Return each treatment's difference from control with its two intervals.

    Percentage points for a proportion, the metric's own unit for a mean.
    """
    is_rate = result.get("kind") == "proportion"
    scale = 100.0 if is_rate else 1.0
    compared = [c for c in result.get("comparisons", ()) if c["difference"] is not None]
    layout = {
        "margin": SIDE,
        "xaxis": {"zeroline": True},
        "yaxis": {"automargin": True, "autorange": "reversed", "type": "category"},
        "legend": {"orientation": "h", "y": -0.2},
    }
    if not compared:
        return _empty(layout, "No difference can be computed yet")
    traces = [
        _interval_trace(compared, "sequential", "valid at every look", "--canary", 4, scale),
        _interval_trace(compared, "fixed", "fixed horizon: one look", "--muted", 1, scale),
    ]
    return {"data": traces, "layout": layout}


def _interval_trace(
    compared: list[dict[str, Any]], key: str, name: str, colour: str, width: int, scale: float
) -> dict[str, Any]:
    points = [comparison["difference"] * scale for comparison in compared]
    above, below = [], []
    for comparison, point in zip(compared, points, strict=True):
        low, high = comparison[key]["low"], comparison[key]["high"]
        known = low is not None and high is not None
        above.append(high * scale - point if known else 0.0)
        below.append(point - low * scale if known else 0.0)
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
        "hovertemplate": "%{y}: %{x:.4g} (%{error_x.arrayminus:.3g} below)<extra>"
        + name
        + "</extra>",
    }


def exposure_figure(result: dict[str, Any]) -> Figure:
    """Return the cumulative number of units that met each variant, over time."""
    series = result.get("exposures") or {"at_ms": [], "units": {}}
    order = {arm["name"]: place for place, arm in enumerate(result.get("arms", ()))}
    names = sorted(series["units"], key=lambda name: (order.get(name, len(order)), name))
    layout = {
        "margin": SIDE,
        "xaxis": {"type": "date"},
        "yaxis": {"title": {"text": "units"}, "rangemode": "tozero", "automargin": True},
        "legend": {"orientation": "h", "y": -0.2},
        "hovermode": "x unified",
    }
    if not names:
        return _empty(layout, "No unit has met a variant yet")
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "meta": COLOURS[place % len(COLOURS)],
            "line": {"dash": DASHES[place // len(COLOURS) % len(DASHES)]},
            "x": series["at_ms"],
            "y": list(accumulate(series["units"][name])),
        }
        for place, name in enumerate(names)
    ]
    return {"data": traces, "layout": layout}


def _empty(layout: dict[str, Any], why: str) -> Figure:
    hidden = {"visible": False}
    note = {"text": why, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    return {
        "data": [],
        "layout": layout | {"xaxis": hidden, "yaxis": hidden, "annotations": [note]},
    }
