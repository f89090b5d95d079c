"""Posterior densities: of each arm's rate, or of each treatment's difference.

Each comparison has the text of its prior. Beta(1, 1) on rates gives a Beta density per arm; N(0,
s²) on the relative effect gives a normal density per treatment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from apps.experiments.charts.parts import Figure, arms_of, empty, layout_of, style_of, titled
from apps.experiments.result_tables.wording import Scale

NORMAL_PRIOR = re.compile(r"N\(0, ([0-9.]+)²\)")
POINTS = 121
# The half-width of a curve, in standard deviations.
REACH = 4.5


def posterior_figure(metric: dict[str, Any], scale: Scale) -> Figure:
    """Return the posterior densities of one metric of a result."""
    compared = [c for c in metric.get("comparisons", ()) if c.get("bayes")]
    if not compared:
        return empty("No Bayesian estimate for this metric")
    arms = arms_of(metric)
    if all(c["bayes"]["prior"].startswith("Beta") for c in compared):
        names = {c["arm"] for c in compared}
        known = [a for a in metric["arms"] if a["is_control"] or a["name"] in names]
        curves = [(a["name"], *_beta(a["n"], a["mean"])) for a in known if a["n"]]
        axis = "rate, %"
    else:
        control: dict[str, Any] = next((a for a in metric["arms"] if a["is_control"]), {})
        mean = control.get("mean") or 0.0
        curves = [
            (c["arm"], *_normal(c, c.get("control_value") or mean))
            for c in compared
            if c["standard_error"]
        ]
        axis = f"difference from control{f', {scale.axis_unit}' if scale.axis_unit else ''}"
    curves = [curve for curve in curves if curve[1]]
    if not curves:
        return empty("No Bayesian estimate for this metric")
    traces = [_trace(arm, arms, x, y, scale.factor) for arm, x, y in curves]
    layout = layout_of(
        {"zeroline": True, **titled(axis)},
        {"title": {"text": "density"}, "showticklabels": False, "rangemode": "tozero"},
    )
    return {"data": traces, "layout": layout}


def _beta(n: int, rate: float) -> tuple[list[float], list[float]]:
    """Return the visible part of the density of Beta(events + 1, n − events + 1)."""
    events = round(n * rate)
    a, b = events + 1.0, n - events + 1.0
    mean = a / (a + b)
    sd = math.sqrt(mean * (1.0 - mean) / (a + b + 1.0))
    x = _grid(max(0.0, mean - REACH * sd), min(1.0, mean + REACH * sd))
    norm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return x, [_beta_at(at, a, b, norm) for at in x]


def _beta_at(at: float, a: float, b: float, norm: float) -> float:
    log = norm
    for base, power in ((at, a - 1.0), (1.0 - at, b - 1.0)):
        if power == 0.0:
            continue
        if base <= 0.0:
            return 0.0
        log += power * math.log(base)
    return math.exp(log)


def _normal(compared: dict[str, Any], control_mean: float) -> tuple[list[float], list[float]]:
    """Return the posterior density of a difference, with the comparison's normal prior."""
    prior = NORMAL_PRIOR.search(compared["bayes"]["prior"])
    prior_sd = float(prior[1]) * abs(control_mean) if prior else 0.0
    error = compared["standard_error"]
    if prior_sd <= 0.0 or not math.isfinite(prior_sd):
        return [], []
    # The root of both variances, without squares that overflow or underflow.
    whole = math.hypot(prior_sd, error)
    mean, sd = (prior_sd / whole) ** 2 * compared["difference"], prior_sd / whole * error
    if sd <= 0.0:
        return [], []
    x = _grid(mean - REACH * sd, mean + REACH * sd)
    peak = 1.0 / (sd * math.sqrt(2.0 * math.pi))
    return x, [peak * math.exp(-(((at - mean) / sd) ** 2) / 2.0) for at in x]


def _grid(low: float, high: float) -> list[float]:
    return [low + (high - low) * place / (POINTS - 1) for place in range(POINTS)]


def _trace(
    arm: str, arms: Sequence[str], x: list[float], y: list[float], factor: float
) -> dict[str, Any]:
    style = style_of(arm, arms)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": arm,
        **style,
        "fill": "tozeroy",
        "x": [at * factor for at in x],
        "y": [density / factor for density in y],
        "hovertemplate": "%{x:.4g}<extra>" + arm + "</extra>",
    }
