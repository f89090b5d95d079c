"""Formats numbers for pages, each metric in its own scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.experiments.models import Metric

NOTHING = "–"
# From the first limit on numbers have no decimals; from the second on they use an exponent.
WHOLE_MIN, PLAIN_MAX = 1e5, 1e15
# The smallest p-value of a result, shown as a bound.
P_MIN = 1e-300


@dataclass(frozen=True)
class Scale:
    """The unit of a metric. With `is_rate`, levels are in per cent and differences in points."""

    is_rate: bool = False
    unit: str = ""

    @property
    def factor(self) -> float:
        """The factor from a value to an axis in `axis_unit`."""
        return 100.0 if self.is_rate else 1.0

    @property
    def axis_unit(self) -> str:
        return "points" if self.is_rate else self.unit

    def level(self, value: float | None) -> str:
        if value is None:
            return NOTHING
        return f"{value * 100:.4g} %" if self.is_rate else self._own(value, "")

    def change(self, value: float | None) -> str:
        if value is None:
            return NOTHING
        return f"{value * 100:+.3g} points" if self.is_rate else self._own(value, "+")

    def amount(self, value: float | None) -> str:
        """Format a size without a sign: a margin, a loss, a standard error."""
        if value is None:
            return NOTHING
        return f"{value * 100:.3g} points" if self.is_rate else self._own(value, "")

    def interval(self, low: float | None, high: float | None) -> str:
        if low is None or high is None:
            return NOTHING
        return f"{_figure(low * self.factor, '+', 3)} to {_figure(high * self.factor, '+', 3)}"

    def _own(self, value: float, sign: str) -> str:
        text = _figure(value, sign, 4 if sign else 5)
        return f"{text} {self.unit}" if self.unit else text


def scale_of(kind: str, source: str = Metric.Source.OUTCOMES) -> Scale:
    """Return the scale of a metric of this kind and source."""
    if source == Metric.Source.LATENCY:
        return Scale(unit="ms")
    counted = source in {Metric.Source.ERRORS, Metric.Source.CACHE}
    return Scale(is_rate=counted or kind == Metric.Kind.PROPORTION)


def percent_change(value: float | None) -> str:
    return NOTHING if value is None else f"{_figure(value * 100, '+', 3)} %"


def probability(value: float | None) -> str:
    """Format a probability in per cent; one below 1 never shows as 100 %."""
    if value is None:
        return NOTHING
    if 0.0 < value < 0.001:
        return "< 0.1 %"
    if 0.999 < value < 1.0:
        return "> 99.9 %"
    return f"{value * 100:.3g} %"


def p_value(value: float | None) -> str:
    if value is None:
        return NOTHING
    if value <= P_MIN:
        return f"< {P_MIN:.0e}"
    return f"{value:.2g}" if value >= 0.001 else f"{value:.1e}"


def reading_interval(reading: Mapping[str, Any], scale: Scale) -> str:
    return scale.interval(reading.get("low"), reading.get("high"))


def uplift_interval(reading: Mapping[str, Any]) -> str:
    low, high = reading.get("uplift_low"), reading.get("uplift_high")
    if low is None or high is None:
        return NOTHING
    return f"{_figure(low * 100, '+', 3)} to {_figure(high * 100, '+', 3)} %"


def level_percent(reading: Mapping[str, Any]) -> str:
    """Return the confidence of a reading's interval in per cent, such as 97.5."""
    alpha = reading.get("alpha")
    return NOTHING if alpha is None else f"{100.0 * (1.0 - alpha):.5g}"


def _figure(value: float, sign: str, digits: int) -> str:
    if WHOLE_MIN <= abs(value) < PLAIN_MAX:
        return f"{value:{sign},.0f}"
    return f"{value:{sign},.{digits}g}"
