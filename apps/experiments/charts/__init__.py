"""Figures of a result page: stored numbers in, Plotly JSON out. Pure.

A trace's `meta` names the page's colour variable, so that light and dark both fit. What has no
number is left out of a figure, and an empty figure says why it is empty.
"""

from apps.experiments.charts.distribution import distribution_figure
from apps.experiments.charts.exposures import exposure_figure
from apps.experiments.charts.intervals import interval_figure
from apps.experiments.charts.posterior import posterior_figure
from apps.experiments.charts.trend import course_figure

__all__ = [
    "course_figure",
    "distribution_figure",
    "exposure_figure",
    "interval_figure",
    "posterior_figure",
]
