"""Shared parts of figures: the style of each arm, layouts and empty figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]

COLOURS = ("--stable", "--canary", "--series-3", "--series-4", "--series-5", "--series-6")
DASHES = ("solid", "dash", "dot", "dashdot")
MARGIN = {"l": 8, "r": 16, "t": 32, "b": 40}
# The number of arms whose bands are shown at first; more bands would hide one another.
BANDS_MAX = 3


def style_of(arm: str, arms: Sequence[str]) -> dict[str, Any]:
    """Return colour and dash of an arm: unique, and the same in every figure."""
    place = arms.index(arm) if arm in arms else len(arms)
    dash = DASHES[place // len(COLOURS) % len(DASHES)]
    return {"meta": COLOURS[place % len(COLOURS)], "line": {"dash": dash}}


def layout_of(x: dict[str, Any], y: dict[str, Any], **more: Any) -> Figure:
    return {
        "margin": MARGIN,
        "xaxis": x,
        "yaxis": {"automargin": True, **y},
        # Above the figure, where no axis has its title.
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        **more,
    }


def titled(text: str) -> dict[str, Any]:
    return {"title": {"text": text}} if text else {}


def empty(reason: str) -> Figure:
    hidden = {"visible": False}
    note = {
        "text": reason,
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": 0.5,
        "y": 0.5,
    }
    layout = {"margin": MARGIN, "xaxis": hidden, "yaxis": hidden, "annotations": [note]}
    return {"data": [], "layout": layout}


def arms_of(metric: dict[str, Any]) -> list[str]:
    return [arm["name"] for arm in metric.get("arms", ())]
