"""The difference of each treatment over time, with the band that is valid at every look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.experiments.charts.parts import (
    BANDS_MAX,
    Figure,
    empty,
    layout_of,
    style_of,
    titled,
)
from apps.experiments.result_tables.wording import Scale

# A Unix time in milliseconds and {arm: [difference, low, high, n]} of one metric.
Point = tuple[int, dict[str, list[float | None]]]


def trend_figure(points: Sequence[Point], arms: Sequence[str], scale: Scale) -> Figure:
    """Return a line and a band for each arm; `arms` are those of the experiment, in its order."""
    observed = {arm for _, numbers in points for arm in numbers}
    shown = [arm for arm in arms if arm in observed] + sorted(observed - set(arms))
    if not shown:
        return empty("No difference has been computed yet")
    traces: list[dict[str, Any]] = []
    for place, arm in enumerate(shown):
        # A click on a name in the legend shows a hidden arm.
        visible: bool | str = True if place < BANDS_MAX else "legendonly"
        traces += _arm_traces(points, arm, arms, scale.factor, visible)
    layout = layout_of(
        {"type": "date"},
        {"zeroline": True, "zerolinewidth": 2, **titled(scale.axis_unit)},
        hovermode="x unified",
    )
    return {"data": traces, "layout": layout}


def _arm_traces(
    points: Sequence[Point], arm: str, arms: Sequence[str], factor: float, visible: bool | str
) -> list[dict[str, Any]]:
    arm_points = [(at, numbers[arm]) for at, numbers in points if arm in numbers]
    style = style_of(arm, arms)
    shared = {
        "type": "scatter",
        "x": [at for at, _ in arm_points],
        "meta": style["meta"],
        "legendgroup": arm,
        "visible": visible,
    }
    edge = {**shared, "mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    edge["line"] = {"width": 0}
    low = {**edge, "name": f"{arm}, low", "y": _values(arm_points, 1, factor)}
    high = {**edge, "name": f"{arm}, high", "y": _values(arm_points, 2, factor), "fill": "tonexty"}
    line = {
        **shared,
        "mode": "lines+markers" if len(arm_points) == 1 else "lines",
        "name": arm,
        "line": style["line"],
        "y": _values(arm_points, 0, factor),
        "customdata": [
            [low_at, high_at, row[3]]
            for row, low_at, high_at in zip(
                [row for _, row in arm_points],
                _values(arm_points, 1, factor),
                _values(arm_points, 2, factor),
                strict=True,
            )
        ],
        "hovertemplate": "%{y:.4g}, from %{customdata[0]:.4g} to %{customdata[1]:.4g}, "
        "%{customdata[2]:,} units",
    }
    return [low, high, line]


def _values(
    arm_points: Sequence[tuple[int, list[float | None]]], place: int, factor: float
) -> list[float | None]:
    return [
        None if row[place] is None else float(row[place] or 0.0) * factor for _, row in arm_points
    ]
