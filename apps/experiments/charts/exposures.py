"""The number of units exposed to each variant, over time."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from apps.experiments.charts.parts import Figure, arms_of, empty, layout_of, style_of


def exposure_figure(result: dict[str, Any]) -> Figure:
    """Return the cumulative number of units of each variant."""
    series = result.get("exposures") or {"at_ms": [], "units": {}}
    metrics = result.get("metrics") or [{}]
    arms = arms_of(metrics[0])
    order = {arm: place for place, arm in enumerate(arms)}
    names = sorted(series["units"], key=lambda name: (order.get(name, len(order)), name))
    if not names:
        return empty("No exposures yet")
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            **style_of(name, arms or names),
            "x": series["at_ms"],
            "y": list(accumulate(series["units"][name])),
        }
        for name in names
    ]
    layout = layout_of(
        {"type": "date"},
        {"title": {"text": "units"}, "rangemode": "tozero"},
        hovermode="x unified",
    )
    return {"data": traces, "layout": layout}
