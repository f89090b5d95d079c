"""The result of a check. Only `pass` lets a step pass, only `fail` rolls back; the others hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105 (a verdict, not a password)
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    INSUFFICIENT_SAMPLE = "insufficient-sample"
    NO_DATA = "no-data"
    PROVIDER_ERROR = "provider-error"


@dataclass(frozen=True)
class CheckResult:
    """`reason` is a sentence that starts with its figures, `evidence` is stored as JSON."""

    check: str
    verdict: Verdict
    reason: str
    evidence: dict[str, JSON]
    # False where no further data can change the verdict, so that waiting is pointless.
    is_decidable: bool = True
    # The figures alone, as a headline shows them; of an empty one the reason makes it.
    headline: str = field(default="", compare=False)


def format_percent(rate: float, digits: int = 2) -> str:
    """Format a fraction in per cent: 0.227 becomes 22.70 %."""
    return f"{100.0 * rate:.{digits}f} %"


def format_odds(log_e: float) -> str:
    """Format e^`log_e` as odds: 12.3:1, 1,910:1; above 10,000 as a power of ten."""
    if log_e > math.log(1e4):
        return f"10^{log_e / math.log(10):.0f}:1"
    value = math.exp(log_e)
    return f"{value:,.0f}:1" if value >= 100.0 else f"{value:.3g}:1"
