"""How units' values spread: the order statistics of quantiles, and the counts of charts.

One scan serves all metrics of a kind. A quantile's ranks are exact: a sample only says between
which two values to look, and who lies there is sorted; whatever the sample got wrong is found by
counting, and then all values are sorted instead.
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
# Charts of more units than this are drawn from about as many.
DRAWN_MAX = 50_000
# Where an arm has more units than this, a sample of about as many says where to look.
SORTED_MAX = 100_000
# The sample's bounds enclose the ranks that are asked for, and the sample's own error, by so many
# of its standard errors on each side.
REACH = SPARSE_REACH + 2.0

# By a metric's place and by arm.
Moments = Mapping[int, Mapping[str, Comoments]]
Orders = dict[tuple[int, str], OrderStatistics]
Counts = dict[tuple[int, str], tuple[int, ...]]
Edges = dict[int, tuple[float, ...]]


@dataclass(frozen=True)
class _Rank:
    """The ranks that are asked of one metric of one arm."""

    place: int
    arm: str
    n: int
    quantile: float

    @property
    def ranks(self) -> tuple[int, ...]:
        return ranks_of(self.n, self.quantile)

    def order(self, values: Sequence[float], equal: int) -> OrderStatistics:
        """Return the order statistics with the values at the ranks."""
        value = values[self.ranks.index(value_rank(self.n, self.quantile))]
        return OrderStatistics(self.n, tuple(values), value, equal)


@dataclass(frozen=True)
class _Near:
    """How many units of an arm have a value: `key`, or an infinity for those far away."""

    key: float
    count: int
    lowest: float
    highest: float


# --- quantiles -----------------------------------------------------------------------------------


def order_statistics(scan: Scan, moments: Moments) -> Orders:
    """Return the order statistics of each quantile metric and arm that has units."""
    asked = [
        _Rank(place, arm, found.n, columns.metric.quantile_ppm / 1_000_000)
        for place, columns in enumerate(scan.metrics)
        if columns.metric.quantile_ppm
        for arm, found in moments[place].items()
        if found.n
    ]
    large = [rank for rank in asked if rank.n > SORTED_MAX]
    found = _narrowed(scan, large) if large else {}
    return found | _sorted(scan, [rank for rank in asked if (rank.place, rank.arm) not in found])


def _sorted(scan: Scan, asked: Sequence[_Rank]) -> Orders:
    """Sort all values; of a metric, each arm is asked for the ranks of all arms."""
    found: Orders = {}
    for place in sorted({rank.place for rank in asked}):
        arms = [rank for rank in asked if rank.place == place]
        # percentile_disc takes the first value whose cumulative share reaches the fraction.
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
        found |= _with_ties(scan, place, orders)
    return found


def _values_of(scan: Scan, place: int) -> str:
    """Return the SQL of the known values of a metric, by `variant_name`, of `arms`."""
    return f"""
        SELECT variant_name, value FROM (
            SELECT variant_name, {values(scan, scan.metrics[place])[0]} AS value
            FROM {scan.rows}
            WHERE {scan.kept} AND variant_name = ANY(%(arms)s)
        ) AS kept WHERE value IS NOT NULL
    """  # noqa: S608 (expressions of ours)


def _with_ties(scan: Scan, place: int, orders: Sequence[tuple[_Rank, OrderStatistics]]) -> Orders:
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


def _narrowed(scan: Scan, asked: Sequence[_Rank]) -> Orders:
    """Sort only the values near each quantile; leave out what the sample did not enclose."""
    bounds = _bounds(scan, asked)
    parameters: dict[str, Any] = {}
    keys = []
    for place in sorted({rank.place for rank in asked}):
        value = values(scan, scan.metrics[place])[0]
        low, high = (_by_arm(f"{side}_{place}", parameters, place, bounds, i) for i, side in SIDES)
        keys.append(
            f"({place}, {value}, CASE WHEN {value} < {low} THEN '-Infinity'::float8"
            f" WHEN {value} <= {high} THEN {value} WHEN {value} > {high} THEN 'Infinity' END)"
        )
    # Of the values that are far away, the extreme ones are asked for as well.
    sql = f"""
        SELECT variant_name, place, key, count(*), min(value), max(value)
        FROM {scan.rows}
        CROSS JOIN LATERAL (VALUES {", ".join(keys)}) AS near(place, value, key)
        WHERE {scan.kept} AND key IS NOT NULL GROUP BY variant_name, place, key
    """  # noqa: S608 (expressions of ours)
    near: dict[tuple[int, str], list[_Near]] = {}
    for arm, place, *row in fetch_rows(sql, scan.parameters | parameters):
        near.setdefault((place, arm), []).append(_Near(*row))
    found: Orders = {}
    for rank in asked:
        order = _pick(rank, sorted(near.get((rank.place, rank.arm), []), key=lambda at: at.key))
        if order is not None:
            found[rank.place, rank.arm] = order
    return found


SIDES = ((0, "low"), (1, "high"))


def _by_arm(
    name: str,
    parameters: dict[str, Any],
    place: int,
    bounds: Mapping[tuple[int, str], tuple[float, float]],
    side: int,
) -> str:
    """Return the SQL of an arm's bound, NULL for an arm that has none."""
    whens = []
    for i, ((of_place, arm), pair) in enumerate(sorted(bounds.items())):
        if of_place == place:
            parameters |= {f"{name}_arm_{i}": arm, f"{name}_{i}": pair[side]}
            whens.append(f"WHEN %({name}_arm_{i})s THEN %({name}_{i})s::float8")
    return f"CASE variant_name {' '.join(whens)} END" if whens else "NULL::float8"


def _bounds(scan: Scan, asked: Sequence[_Rank]) -> dict[tuple[int, str], tuple[float, float]]:
    """Return two values that very likely enclose the ranks of each metric and arm."""
    every = max(1, min(rank.n for rank in asked) // SORTED_MAX)
    found: dict[tuple[int, str], tuple[float, float]] = {}
    for place in sorted({rank.place for rank in asked}):
        arms = [rank for rank in asked if rank.place == place]
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
                found[place, arm] = (
                    lowest if low > 0.0 else -math.inf,
                    highest if high < 1.0 else math.inf,
                )
    return found


def _pick(rank: _Rank, near: Sequence[_Near]) -> OrderStatistics | None:
    """Return the values at the ranks, or None when one lies below or above what was counted."""
    cumulated = list(accumulate(each.count for each in near))
    if not near or cumulated[-1] != rank.n:
        return None
    picked = []
    for number in rank.ranks:
        each = near[bisect_left(cumulated, number)]
        # Of values that are far away only the extreme one is known.
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

    Mann and Whitney's test is computed from the counts, and so takes all units.
    """
    edges = edges_of(scan, moments)
    units = max((sum(arm.n for arm in moments[place].values()) for place in edges), default=0)
    exact = [place for place in edges if scan.metrics[place].use.mann_whitney]
    drawn = [place for place in edges if place not in exact]
    counts = _counts(scan, edges, exact, 1)
    return edges, counts | _counts(scan, edges, drawn, max(1, units // DRAWN_MAX))


def edges_of(scan: Scan, moments: Moments) -> Edges:
    """Return the edges of the bins of each metric whose units have values that differ."""
    edges = {}
    for place, columns in enumerate(scan.metrics):
        # A proportion's rate says it all, and no unit has a ratio of its own.
        if columns.metric.kind in {Metric.Kind.MEAN, Metric.Kind.QUANTILE}:
            found = _edges(list(moments[place].values()))
            if found:
                edges[place] = found
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
    found: dict[tuple[int, str], list[int]] = {}
    for arm, place, at_bin, n in fetch_rows(sql, scan.parameters | parameters):
        if arm in scan.names:
            found.setdefault((place, arm), [0] * (len(edges[place]) + 1))[at_bin] += n
    return {key: tuple(counted) for key, counted in found.items()}


def _edges(arms: Sequence[Comoments]) -> tuple[float, ...]:
    """Return edges that lie within four deviations of the mean; none when all values are alike."""
    whole = Comoments.empty(1)
    for arm in arms:
        whole = whole.merge(Comoments(arm.n, arm.means[:1], (arm.product(0, 0),)))
    variance = whole.covariance(0, 0) or 0.0
    reach = 4.0 * variance**0.5
    if whole.n < 2 or not reach > 0.0:
        return ()
    low, step = whole.means[0] - reach, 2.0 * reach / BINS
    return tuple(low + step * i for i in range(1, BINS))
