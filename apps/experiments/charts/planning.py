"""The minimum detectable effect of an experiment by duration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.experiments.charts.parts import Figure, empty, layout_of
from apps.experiments.result_tables.wording import Scale

READINGS = (("fixed", "at the planned end", "--stable"), ("sequential", "at any time", "--canary"))


def detectable_figure(
    curve: Sequence[dict[str, Any]], effect: float | None, scale: Scale
) -> Figure:
    """Return the minimum detectable effect by days, for both readings."""
    if not any(point["fixed"] is not None for point in curve):
        return empty("No traffic: the duration in days cannot be estimated")
    traces: list[dict[str, Any]] = []
    for key, name, colour in READINGS:
        points = [point for point in curve if point[key] is not None]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "meta": colour,
                "x": [point["days"] for point in points],
                "y": [point[key] * scale.factor for point in points],
                "customdata": [point["units"] for point in points],
                "hovertemplate": "%{x} days, %{customdata:,} units: %{y:.4g}",
            }
        )
    if effect is not None:
        ends = [curve[0]["days"], curve[-1]["days"]]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "requested effect",
                "meta": "--muted",
                "x": ends,
                "y": [abs(effect) * scale.factor] * 2,
                "line": {"dash": "dot"},
                "hoverinfo": "skip",
            }
        )
    unit = f", {scale.axis_unit}" if scale.axis_unit else ""
    layout = layout_of(
        {"title": {"text": "days"}, "type": "log"},
        {"title": {"text": f"minimum detectable effect{unit}"}, "rangemode": "tozero"},
    )
    return {"data": traces, "layout": layout}
