"""Sufficient statistics from PostgreSQL: a few scans over the folded units' values."""

from __future__ import annotations

from collections.abc import Sequence

from apps.experiments.attribution import Attribution, SentMetric, count_in_postgres
from apps.experiments.distributions import (
    Counts,
    Edges,
    Moments,
    Orders,
    distributions,
    order_statistics,
)
from apps.experiments.models import Experiment
from apps.experiments.moments_by_level import level_moments
from apps.experiments.sources import LevelMoments, PhaseCount
from apps.experiments.unit_query import Scan, fetch_rows


class Postgres:
    """The default source, without a warehouse; see `sources.Source`."""

    def missing_means(self, scan: Scan, places: Sequence[int]) -> list[float | None]:
        sql = f"""
            SELECT {", ".join(f"avg(values[{place}])" for place in places)}
            FROM {scan.rows}
            WHERE experiment_id = %(experiment)s AND NOT crossed_over
        """  # noqa: S608 (numbers of ours)
        return list(fetch_rows(sql, scan.parameters)[0])

    def phase_counts(self, scan: Scan) -> list[PhaseCount]:
        sql = f"""
            SELECT variant_name, {scan.phase} AS phase,
                count(*) FILTER (WHERE NOT crossed_over AND NOT {scan.moved}),
                count(*) FILTER (WHERE crossed_over),
                count(*) FILTER (WHERE NOT crossed_over AND {scan.moved})
            FROM {scan.rows} WHERE experiment_id = %(experiment)s
            GROUP BY variant_name, phase
        """  # noqa: S608 (conditions of ours)
        return [PhaseCount(*row) for row in fetch_rows(sql, scan.parameters)]

    def level_moments(self, scan: Scan, dimension: str) -> list[LevelMoments]:
        return level_moments(scan, dimension)

    def order_statistics(self, scan: Scan, moments: Moments) -> Orders:
        return order_statistics(scan, moments)

    def distributions(self, scan: Scan, moments: Moments) -> tuple[Edges, Counts]:
        return distributions(scan, moments)

    def attributions(self, experiment: Experiment, sent: Sequence[SentMetric]) -> list[Attribution]:
        return count_in_postgres(experiment, sent)
