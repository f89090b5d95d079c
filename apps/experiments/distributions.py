"""Computes the order statistics of quantiles and the bin counts of charts, in PostgreSQL.

One scan serves all metrics of a kind. The ranks of a quantile are exact: a sample gives two bounds,
and only the values between them are sorted. Counts verify the bounds; if they do not enclose the
ranks, all values are sorted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from apps.experiments.models import Metric
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import OrderStatistics
from apps.experiments.stats.quantiles import SPARSE_REACH, ranks_of, value_rank
from apps.experiments.unit_query import Scan, fetch_rows, values

BINS = 40
# With more units than this, a chart uses a sample of about this size.
DRAWN_MAX = 50_000
# With more units in an arm than this, a sample of about this size gives the bounds to search.
SORTED_MAX = 100_000
# The distance of the sample's bounds from the quantile, in standard errors of the sample. It covers
# the ranks of the query and the error of the sample.
REACH = SPARSE_REACH + 2.0

# By the metric's index and by arm.
Moments = Mapping[int, Mapping[str, Comoments]]
Orders = dict[tuple[int, str], OrderStatistics]
Counts = dict[tuple[int, str], tuple[int, ...]]
Edges = dict[int, tuple[float, ...]]


@dataclass(frozen=True)
class _RankQuery:
    """The ranks to read for one metric in one arm."""

    place: int
    arm: str
    n: int
    quantile: float

    @property
    def ranks(self) -> tuple[int, ...]:
        return ranks_of(self.n, self.quantile)

    def order(self, values: Sequence[float], equal: int) -> OrderStatistics:
        value = values[self.ranks.index(value_rank(self.n, self.quantile))]
        return OrderStatistics(self.n, tuple(values), value, equal)


@dataclass(frozen=True)
class _Near:
    """The units of an arm with the value `key`; an infinite key counts all distant values."""

    key: float
    count: int
    lowest: float
    highest: float


# --- quantiles -----------------------------------------------------------------------------------


def order_statistics(scan: Scan, moments: Moments) -> Orders:
    """Return the order statistics of each quantile metric and arm with units."""
    queries = [
        _RankQuery(place, arm, comoments.n, columns.metric.quantile_ppm / 1_000_000)
        for place, columns in enumerate(scan.metrics)
        if columns.metric.quantile_ppm
        for arm, comoments in moments[place].items()
        if comoments.n
    ]
    large = [rank for rank in queries if rank.n > SORTED_MAX]
    orders = _narrowed(scan, large) if large else {}
    return orders | _sorted(
        scan, [rank for rank in queries if (rank.place, rank.arm) not in orders]
    )


def _sorted(scan: Scan, queries: Sequence[_RankQuery]) -> Orders:
    """Sort all values. Each arm is queried for the ranks of all arms of the metric."""
    orders_by_arm: Orders = {}
    for place in sorted({rank.place for rank in queries}):
        arms = [rank for rank in queries if rank.place == place]
        # percentile_disc returns the first value with a cumulative share of at least the fraction.
        fractions = [(number - 0.5) / rank.n for rank in arms for number in rank.ranks]
        sql = f"""
            SELECT variant_name,
                percentile_disc(%(fractions)s::float8[]) WITHIN GROUP (ORDER BY value)
            FROM ({_values_of(scan, place)}) AS seen GROUP BY variant_name
        """  # noqa: S608 (expressions of ours)
        parameters = {"fractions": fractions, "arms": [rank.arm for rank in arms]}
        answers = dict(fetch_rows(sql, scan.parameters | parameters))
        start, orders = 0, []
        for rank in arms:
            end = start + len(rank.ranks)
            orders.append((rank, rank.order(answers[rank.arm][start:end], 1)))
            start = end
        orders_by_arm |= _with_ties(scan, place, orders)
    return orders_by_arm


def _values_of(scan: Scan, place: int) -> str:
    """Return the SQL of the known values of a metric, by `variant_name`, of `arms`."""
    return f"""
        SELECT variant_name, value FROM (
            SELECT variant_name, {values(scan, scan.metrics[place])[0]} AS value
            FROM {scan.rows}
            WHERE {scan.kept} AND variant_name = ANY(%(arms)s)
        ) AS kept WHERE value IS NOT NULL
    """  # noqa: S608 (expressions of ours)


def _with_ties(
    scan: Scan, place: int, orders: Sequence[tuple[_RankQuery, OrderStatistics]]
) -> Orders:
    """Count the values that equal their arm's quantile."""
    sql = f"""
        SELECT variant_name, count(*) FROM ({_values_of(scan, place)}) AS seen
        JOIN unnest(%(arms)s::text[], %(quantiles)s::float8[]) AS at(variant_name, quantile)
            USING (variant_name)
        WHERE value = quantile GROUP BY variant_name
    """  # noqa: S608 (expressions of ours)
    parameters = {
        "arms": [rank.arm for rank, _ in orders],
        "quantiles": [order.value for _, order in orders],
    }
    equal = dict(fetch_rows(sql, scan.parameters | parameters))
    return {
        (place, rank.arm): replace(order, equal=int(equal.get(rank.arm, 1)))
        for rank, order in orders
    }


def _narrowed(scan: Scan, queries: Sequence[_RankQuery]) -> Orders:
    """Sort only the values near each quantile; omit ranks that the sample did not enclose."""
    bounds = _bounds(scan, queries)
    parameters: dict[str, Any] = {}
    keys = []
    for place in sorted({rank.place for rank in queries}):
        value = values(scan, scan.metrics[place])[0]
        low, high = (_by_arm(f"{side}_{place}", parameters, place, bounds, i) for i, side in SIDES)
        keys.append(
            f"({place}, {value}, CASE WHEN {value} < {low} THEN '-Infinity'::float8"
            f" WHEN {value} <= {high} THEN {value} WHEN {value} > {high} THEN 'Infinity' END)"
        )
    # The query also returns the extremes of the distant values.
    sql = f"""
        SELECT variant_name, place, key, count(*), min(value), max(value)
        FROM {scan.rows}
        CROSS JOIN LATERAL (VALUES {", ".join(keys)}) AS near(place, value, key)
        WHERE {scan.kept} AND key IS NOT NULL GROUP BY variant_name, place, key
    """  # noqa: S608 (expressions of ours)
    near: dict[tuple[int, str], list[_Near]] = {}
    for arm, place, *row in fetch_rows(sql, scan.parameters | parameters):
        near.setdefault((place, arm), []).append(_Near(*row))
    orders: Orders = {}
    for rank in queries:
        order = _pick(rank, sorted(near.get((rank.place, rank.arm), []), key=lambda at: at.key))
        if order is not None:
            orders[rank.place, rank.arm] = order
    return orders


SIDES = ((0, "low"), (1, "high"))


def _by_arm(
    name: str,
    parameters: dict[str, Any],
    place: int,
    bounds: Mapping[tuple[int, str], tuple[float, float]],
    side: int,
) -> str:
    """Return the SQL of an arm's bound, NULL for an arm without one."""
    whens = []
    for i, ((of_place, arm), pair) in enumerate(sorted(bounds.items())):
        if of_place == place:
            parameters |= {f"{name}_arm_{i}": arm, f"{name}_{i}": pair[side]}
            whens.append(f"WHEN %({name}_arm_{i})s THEN %({name}_{i})s::float8")
    return f"CASE variant_name {' '.join(whens)} END" if whens else "NULL::float8"


def _bounds(
    scan: Scan, queries: Sequence[_RankQuery]
) -> dict[tuple[int, str], tuple[float, float]]:
    """Return two values that very likely enclose the ranks of each metric and arm."""
    every = max(1, min(rank.n for rank in queries) // SORTED_MAX)
    bounds: dict[tuple[int, str], tuple[float, float]] = {}
    for place in sorted({rank.place for rank in queries}):
        arms = [rank for rank in queries if rank.place == place]
        quantile = arms[0].quantile
        sampled = min(rank.n for rank in arms) / every
        reach = REACH * math.sqrt(quantile * (1.0 - quantile) / sampled)
        low, high = quantile - reach, quantile + reach
        sql = f"""
            SELECT variant_name, percentile_disc(%(shares)s::float8[]) WITHIN GROUP (ORDER BY value)
            FROM (SELECT variant_name, {values(scan, scan.metrics[place])[0]} AS value
                FROM {scan.rows}
                WHERE {scan.kept} AND bucket %% %(every)s = 0) AS seen
            WHERE value IS NOT NULL GROUP BY variant_name
        """  # noqa: S608 (expressions of ours)
        parameters = {"shares": [max(0.0, low), min(1.0, high)], "every": every}
        for arm, (lowest, highest) in fetch_rows(sql, scan.parameters | parameters):
            if arm in {rank.arm for rank in arms}:
                bounds[place, arm] = (
                    lowest if low > 0.0 else -math.inf,
                    highest if high < 1.0 else math.inf,
                )
    return bounds


def _pick(rank: _RankQuery, near: Sequence[_Near]) -> OrderStatistics | None:
    """Return the values at the ranks, or None if one lies outside the counted values."""
    cumulated = list(accumulate(each.count for each in near))
    if not near or cumulated[-1] != rank.n:
        return None
    picked = []
    for number in rank.ranks:
        each = near[bisect_left(cumulated, number)]
        # Of the distant values only the extreme one is known.
        if number in (1, rank.n):
            picked.append(each.lowest if number == 1 else each.highest)
        elif math.isinf(each.key):
            return None
        else:
            picked.append(each.key)
    value = rank.order(picked, 1).value
    return rank.order(picked, next(each.count for each in near if each.key == value))


# --- charts --------------------------------------------------------------------------------------


def distributions(scan: Scan, moments: Moments) -> tuple[Edges, Counts]:
    """Return each metric's edges between the extremes, and its arms' units per bin.

    The Mann-Whitney test uses these counts, and so needs all units.
    """
    edges = edges_of(scan, moments)
    units = max((sum(arm.n for arm in moments[place].values()) for place in edges), default=0)
    exact = [place for place in edges if scan.metrics[place].use.mann_whitney]
    drawn = [place for place in edges if place not in exact]
    counts = _counts(scan, edges, exact, 1)
    return edges, counts | _counts(scan, edges, drawn, max(1, units // DRAWN_MAX))


def edges_of(scan: Scan, moments: Moments) -> Edges:
    """Return the bin edges of each metric with different values."""
    edges = {}
    for place, columns in enumerate(scan.metrics):
        # A proportion is determined by its rate, and a unit has no ratio of its own.
        if columns.metric.kind in {Metric.Kind.MEAN, Metric.Kind.QUANTILE}:
            metric_edges = _edges(list(moments[place].values()))
            if metric_edges:
                edges[place] = metric_edges
    return edges


def _counts(scan: Scan, edges: Edges, places: Sequence[int], every: int) -> Counts:
    if not places:
        return {}
    firsts = {place: values(scan, scan.metrics[place])[0] for place in places}
    bins = ", ".join(
        f"({place}, width_bucket({value}, %(edges_{place})s::float8[]))"
        for place, value in firsts.items()
    )
    sql = f"""
        SELECT variant_name, place, bin, count(*)
        FROM {scan.rows} CROSS JOIN LATERAL (VALUES {bins}) AS binned(place, bin)
        WHERE {scan.kept} AND bucket %% %(every)s = 0 AND bin IS NOT NULL
        GROUP BY variant_name, place, bin
    """  # noqa: S608 (expressions of ours)
    parameters = {f"edges_{place}": list(edges[place]) for place in places} | {"every": every}
    bin_counts: dict[tuple[int, str], list[int]] = {}
    for arm, place, at_bin, n in fetch_rows(sql, scan.parameters | parameters):
        if arm in scan.names:
            bin_counts.setdefault((place, arm), [0] * (len(edges[place]) + 1))[at_bin] += n
    return {key: tuple(counted) for key, counted in bin_counts.items()}


def _edges(arms: Sequence[Comoments]) -> tuple[float, ...]:
    """Return edges within four standard deviations of the mean; none if all values are equal."""
    whole = Comoments.empty(1)
    for arm in arms:
        whole = whole.merge(Comoments(arm.n, arm.means[:1], (arm.product(0, 0),)))
    variance = whole.covariance(0, 0) or 0.0
    reach = 4.0 * variance**0.5
    if whole.n < 2 or not reach > 0.0:
        return ()
    low, step = whole.means[0] - reach, 2.0 * reach / BINS
    return tuple(low + step * i for i in range(1, BINS))
