"""Agreement of shadow responses with stable, from shadow windows of a time range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Max, QuerySet, Sum

from apps.rollouts.models import ShadowRow

# The time range of the model page.
RECENT = timedelta(hours=1)
SHADOWS_MAX = 20
COUNTS = ("compared", "rows", "flips", "beyond_tolerance", "ranked", "errors", "dropped")


@dataclass(frozen=True)
class ShadowAgreement:
    """Counts of copied requests; rates are None without rows.

    `compared` copies with `rows` rows have both responses; contract.messages.ShadowWindow defines
    the other counts.
    """

    compared: int = 0
    rows: int = 0
    flips: int = 0
    beyond_tolerance: int = 0
    ranked: int = 0
    errors: int = 0
    dropped: int = 0
    largest_difference: float = 0.0
    rank_correlation_sum: float = 0.0

    @property
    def flip_rate(self) -> float | None:
        return self.flips / self.rows if self.rows else None

    @property
    def beyond_rate(self) -> float | None:
        return self.beyond_tolerance / self.rows if self.rows else None

    @property
    def error_rate(self) -> float | None:
        """The share of copies sent to the shadow that failed."""
        sent = self.compared + self.errors
        return self.errors / sent if sent else None

    @property
    def rank_correlation(self) -> float | None:
        """The mean Spearman coefficient of the rows with at least two scores."""
        return self.rank_correlation_sum / self.ranked if self.ranked else None


@dataclass(frozen=True)
class Shadowed:
    """One shadow for the model page."""

    shadow: str
    version: str
    stable: str
    last_at: datetime
    agreement: ShadowAgreement


def shadow_agreement(
    shadow: str, *, since: datetime, until: datetime, generation_min: int = 0
) -> ShadowAgreement:
    """Return the agreement in windows of the shadow that ended in (since, until].

    `generation_min` leaves out windows of older tables, such as those of an earlier step.
    """
    rows = ShadowRow.objects.filter(
        shadow=shadow, generation__gte=generation_min, ended_at__gt=since, ended_at__lte=until
    )
    return _agreement(rows.aggregate(**_sums()))


def recent_shadows(model_name: str, now: datetime) -> list[Shadowed]:
    """Return the shadows of the model in the last hour, newest first."""
    rows = (
        _recent(model_name, now)
        .values("shadow", "version_number", "stable_number")
        .annotate(last_at=Max("ended_at"), **_sums())
        .order_by("-last_at", "shadow")[:SHADOWS_MAX]
    )
    return [
        Shadowed(
            shadow=row["shadow"],
            version=row["version_number"],
            stable=row["stable_number"],
            last_at=row["last_at"],
            agreement=_agreement(row),
        )
        for row in rows
    ]


def shadows_stamp(model_name: str, now: datetime) -> tuple[object, ...]:
    """Return values that change whenever `recent_shadows` changes."""
    return tuple(_recent(model_name, now).aggregate(Max("id"), Count("id")).values())


def _recent(model_name: str, now: datetime) -> QuerySet[ShadowRow]:
    return ShadowRow.objects.filter(
        model_name=model_name, ended_at__gt=now - RECENT, ended_at__lte=now
    )


def _sums() -> dict[str, Sum | Max]:
    return {
        **{f"all_{name}": Sum(name) for name in (*COUNTS, "rank_correlation_sum")},
        "all_largest_difference": Max("largest_difference"),
    }


def _agreement(row: Mapping[str, Any]) -> ShadowAgreement:
    """Convert sums, which are None without windows, to counts."""
    names = (*COUNTS, "rank_correlation_sum", "largest_difference")
    return ShadowAgreement(**{name: row[f"all_{name}"] or 0 for name in names})
