"""Builds the figures of a result page: stored numbers in, Plotly JSON out. Pure functions.

A trace's `meta` is the name of the page's CSS colour variable, so that light and dark themes work.
A figure omits missing values. An empty figure has a text that says why it is empty.
"""

from apps.experiments.charts.distribution import distribution_figure
from apps.experiments.charts.exposures import exposure_figure
from apps.experiments.charts.intervals import interval_figure
from apps.experiments.charts.posterior import posterior_figure
from apps.experiments.charts.trend import trend_figure

__all__ = [
    "distribution_figure",
    "exposure_figure",
    "interval_figure",
    "posterior_figure",
    "trend_figure",
]
