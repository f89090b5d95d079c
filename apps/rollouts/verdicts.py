"""What a check answers. Only `pass` lets a step pass, only `fail` rolls back; the others hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    """One check's answer: `reason` is a sentence with its numbers, `evidence` is stored as JSON."""

    check: str
    verdict: Verdict
    reason: str
    evidence: dict[str, JSON]
    # False where no more data could ever decide it: then waiting is for nothing.
    is_decidable: bool = True


def odds(log_e: float) -> str:
    """Return e^`log_e` as people read odds: 12.3:1, 1,910:1; huge ones by their power of ten."""
    if log_e > math.log(1e4):
        return f"10^{log_e / math.log(10):.0f}:1"
    value = math.exp(log_e)
    return f"{value:,.0f}:1" if value >= 100.0 else f"{value:.3g}:1"
