"""Sufficient statistics from PostgreSQL: a few scans over the units' values that the fold made.

Means and co-moments are PostgreSQL's own (Youngs and Cramer), so that no sum of squares cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from apps.experiments.moves import TENANT
from apps.experiments.scan import Scan, ask, values
from apps.experiments.sources import LevelMoments, PhaseCount
from apps.experiments.spreads import (
    Counts,
    Edges,
    Moments,
    Orders,
    distributions,
    order_statistics,
)
from apps.experiments.stats.comoments import Comoments


class Postgres:
    """The source of those who do not outgrow it; see `sources.Source`."""

    def missing_means(self, scan: Scan, places: Sequence[int]) -> list[float | None]:
        sql = f"""
            SELECT {", ".join(f"avg(values[{place}])" for place in places)}
            FROM experiments_exposurerow
            WHERE experiment_id = %(experiment)s AND NOT crossed_over
        """  # noqa: S608 (numbers of ours)
        return list(ask(sql, scan.parameters)[0])

    def phase_counts(self, scan: Scan) -> list[PhaseCount]:
        starts = [phase.at for phase in scan.phases[1:]]
        sql = f"""
            SELECT variant_name, width_bucket(at, %(starts)s::timestamptz[]) AS phase,
                count(*) FILTER (WHERE NOT crossed_over AND NOT {scan.moved}),
                count(*) FILTER (WHERE crossed_over),
                count(*) FILTER (WHERE NOT crossed_over AND {scan.moved})
            FROM experiments_exposurerow WHERE experiment_id = %(experiment)s
            GROUP BY variant_name, phase
        """  # noqa: S608 (conditions of ours)
        return [PhaseCount(*row) for row in ask(sql, scan.parameters | {"starts": starts})]

    def level_moments(self, scan: Scan, dimension: str) -> list[LevelMoments]:
        asked = [values(scan, metric) for metric in scan.metrics]
        names = [[f"m{i}_{j}" for j in range(len(parts))] for i, parts in enumerate(asked)]
        picked = ", ".join(
            f"{sql} AS {name}"
            for parts, row in zip(asked, names, strict=True)
            for sql, name in zip(parts, row, strict=True)
        )
        level, parameter = _level(dimension) if dimension else ("''", "")
        sums = ", ".join(_sums(row) for row in names)
        sql = f"""
            WITH seen AS (
                SELECT variant_name, {level} AS level, {picked}
                FROM experiments_exposurerow WHERE {scan.kept}
            )
            SELECT variant_name, level, count(*), {sums} FROM seen GROUP BY variant_name, level
        """  # noqa: S608 (expressions of ours)
        found = []
        for variant, of_level, units, *numbers in ask(
            sql, scan.parameters | {"dimension": parameter}
        ):
            made, start = [], 0
            for row in names:
                width = 1 + len(row) + len(row) * (len(row) + 1) // 2
                made.append(_comoments(numbers[start : start + width], len(row)))
                start += width
            found.append(LevelMoments(variant, of_level, units, made))
        return found

    def order_statistics(self, scan: Scan, moments: Moments) -> Orders:
        return order_statistics(scan, moments)

    def distributions(self, scan: Scan, moments: Moments) -> tuple[Edges, Counts]:
        return distributions(scan, moments)


def _level(dimension: str) -> tuple[str, str]:
    """Return the SQL of a unit's level of a dimension, and the parameter it takes."""
    if dimension == TENANT:
        return "coalesce(nullif(tenant, ''), '(none)')", ""
    return "coalesce(attributes ->> %(dimension)s, '(none)')", dimension


def _sums(row: Sequence[str]) -> str:
    """Return the SQL of a metric's count, means and products of deviations, as in `Comoments`.

    Aggregates of the same arguments share one state in PostgreSQL, which is what a row costs: so
    each pair of values is summed once, and means and squares come out of the pairs.
    """
    if len(row) == 1:
        (value,) = row
        return f"count({value}), avg({value}), var_pop({value}) * count({value})"
    pairs = [f"{a}, {b}" for a, b in pairwise(row)]
    means = [f"regr_avgy({pair})" for pair in pairs] + [f"regr_avgx({pairs[-1]})"]
    squares = [f"regr_syy({pair})" for pair in pairs] + [f"regr_sxx({pairs[-1]})"]
    products = []
    for i, a in enumerate(row):
        products += [squares[i], *(f"regr_sxy({a}, {b})" for b in row[i + 1 :])]
    return ", ".join([f"regr_count({pairs[0]})", *means, *products])


def _comoments(numbers: Sequence[Any], k: int) -> Comoments:
    n = int(numbers[0])
    if n == 0:
        return Comoments.empty(k)
    return Comoments(n, tuple(numbers[1 : 1 + k]), tuple(numbers[1 + k :]))
