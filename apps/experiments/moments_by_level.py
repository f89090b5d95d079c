"""Computes moments by variant, phase and level in PostgreSQL, with full float precision.

PostgreSQL's own co-moments (Youngs and Cramer) do not subtract sums of squares, but their sums are
about 0. If the mean is large relative to the standard deviation, digits are lost, and a constant
such as 0.3 seems to vary a little about a slightly wrong mean. Such metrics are summed again about
their means (the two passes of Chan, Golub and LeVeque 1983). Third co-moments come from sums of
triple products about the same origin; they need fewer digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

from apps.experiments.lifecycle import TENANT
from apps.experiments.sources import LevelMoments
from apps.experiments.stats.comoments import Comoments, Extremes, central_thirds, triples
from apps.experiments.unit_query import Scan, fetch_rows, values

# The relative rounding error of a mean is up to n·2⁻⁵³, and its standard error is √(variance/n).
# From this value of mean²/variance · n on, the former may be 10⁻⁵ of the latter at a million units;
# it grows with n.
LOST = 1e10
# PostgreSQL rejects a product that overflows or underflows a float. Values of up to 10¹²², and
# those that are 0 or differ from −NUDGE, have a third power at this scale.
NUDGE, SCALE = 1e-60, 1e-20


def level_moments(scan: Scan, dimension: str) -> list[LevelMoments]:
    """Return the moments by variant, phase and level, in this order.

    Without a dimension the level is empty.
    """
    rows = _query_moments(scan, dimension, range(len(scan.metrics)))
    again = [
        place
        for place in range(len(scan.metrics))
        if any(_lost_digits(row.moments[place]) for row in rows)
    ]
    if not again:
        return rows
    centred_rows = _query_moments(scan, dimension, again, rows)
    return [
        replace(row, moments=_replace_at(row.moments, again, centred.moments))
        for row, centred in zip(rows, centred_rows, strict=True)
    ]


def _replace_at(
    into: Sequence[Comoments], places: Sequence[int], moments: Sequence[Comoments]
) -> list[Comoments]:
    by_place = dict(zip(places, moments, strict=True))
    return [by_place.get(place, known) for place, known in enumerate(into)]


def _lost_digits(moments: Comoments) -> bool:
    squares = (moments.product(i, i) for i in range(len(moments.means)))
    return any(
        # A sum of squares of exactly 0 means constant values with exact sums.
        square > 0.0 and (mean * moments.n) ** 2 > LOST * square
        for mean, square in zip(moments.means, squares, strict=True)
    )


def _query_moments(
    scan: Scan, dimension: str, places: Sequence[int], known: Sequence[LevelMoments] = ()
) -> list[LevelMoments]:
    """Return the moments of these metrics, about 0 or about the means of `known`."""
    parts = [values(scan, scan.metrics[place]) for place in places]
    names = [[f"m{i}_{j}" for j in range(len(row))] for i, row in enumerate(parts)]
    all_names = [name for row in names for name in row]
    picked = zip(all_names, (sql for row in parts for sql in row), strict=True)
    level, parameter = _level(dimension) if dimension else ("''", "")
    centres = [[m for place in places for m in row.moments[place].means] for row in known]
    about, parameters = _about(all_names, known, centres) if known else ("", {})
    offs = [f"{m} - {m}_about AS {m}_off" for m in all_names if known]
    off = "_off" if known else ""
    # Without OFFSET 0, PostgreSQL would compute a unit's values again for each sum.
    scaled = [f"({m}{' - ' + m + '_about' if known else ''} + {NUDGE!r}) * {SCALE!r} AS {m}_scaled"
              for m in all_names]  # fmt: skip
    sums = [_sums(row, off) for row in names]
    constants = [f"CASE WHEN min({m}) = max({m}) THEN min({m}) END" for m in all_names if known]
    sql = f"""
        WITH seen AS (
            SELECT variant_name, {scan.phase} AS phase, {level} AS level,
                {", ".join(f"{v} AS {m}" for m, v in picked)}
            FROM {scan.rows} WHERE {scan.kept}
        ), near AS (
            SELECT variant_name, phase, level, {", ".join([*all_names, *offs, *scaled])}
            FROM seen {about} OFFSET 0
        )
        SELECT variant_name, phase, level, count(*), {", ".join([*sums, *constants])}
        FROM near
        GROUP BY variant_name, phase, level
        ORDER BY variant_name COLLATE "C", phase, level COLLATE "C"
    """  # noqa: S608 (expressions of ours)
    rows = fetch_rows(sql, scan.parameters | {"dimension": parameter} | parameters)
    widths = [len(row) for row in names]
    moments = [
        LevelMoments(variant, phase, of_level, units, _read(iter(numbers), widths))
        for variant, phase, of_level, units, *numbers in rows
    ]
    if not known:
        return moments
    return [
        replace(
            row, moments=_moved_back(row.moments, iter(centre), iter(numbers[-len(all_names) :]))
        )
        for row, centre, numbers in zip(moments, centres, rows, strict=True)
    ]


def _about(
    names: Sequence[str], known: Sequence[LevelMoments], centres: Sequence[Sequence[float]]
) -> tuple[str, dict[str, Any]]:
    """Return the SQL that joins each unit to the means of its group, and its parameters."""
    columns = [f"{name}_about" for name in names]
    of_columns = dict(zip(columns, map(list, zip(*centres, strict=True)), strict=True))
    listed = ", ".join(f"%({column})s::float8[]" for column in columns)
    sql = f"""
        JOIN unnest(%(variants)s::text[], %(phases)s::int[], %(levels)s::text[], {listed})
            AS about(variant_name, phase, level, {", ".join(columns)})
            USING (variant_name, phase, level)
    """
    groups = {
        "variants": [row.variant for row in known],
        "phases": [row.phase for row in known],
        "levels": [row.level for row in known],
    }
    return sql, groups | of_columns


def _level(dimension: str) -> tuple[str, str]:
    """Return the SQL of a unit's level of a dimension, and its parameter."""
    if dimension == TENANT:
        return "coalesce(nullif(tenant, ''), '(none)')", ""
    return "coalesce(attributes ->> %(dimension)s, '(none)')", dimension


def _sums(names: Sequence[str], off: str) -> str:
    """Return the SQL of a metric's sums.

    These are the count, the means and products of deviations, as in `Comoments`, the sums of triple
    products, and the extremes of its first value. `off` is the suffix of the names of deviations.

    Aggregates with the same arguments share one state in PostgreSQL, which determines the cost of a
    row. So each pair of values is aggregated once, and means and squares come from the pairs.
    """
    row, first = [f"{name}{off}" for name in names], names[0]
    scaled = [f"{name}_scaled" for name in names]
    thirds = [f"sum({scaled[i]} * {scaled[j]} * {scaled[k]})" for i, j, k in triples(len(row))]
    more = [*thirds, f"count(nullif({first}, 0))", f"min({first})", f"max({first})"]
    if len(row) == 1:
        (value,) = row
        moments = [f"count({value})", f"avg({value})", f"var_pop({value}) * count({value})"]
        return ", ".join(moments + more)
    pairs = [f"{a}, {b}" for a, b in pairwise(row)]
    means = [f"regr_avgy({pair})" for pair in pairs] + [f"regr_avgx({pairs[-1]})"]
    squares = [f"regr_syy({pair})" for pair in pairs] + [f"regr_sxx({pairs[-1]})"]
    products = []
    for i, a in enumerate(row):
        products += [squares[i], *(f"regr_sxy({a}, {b})" for b in row[i + 1 :])]
    return ", ".join([f"regr_count({pairs[0]})", *means, *products, *more])


# --- reading -------------------------------------------------------------------------------------


def _read(numbers: Iterator[Any], widths: Sequence[int]) -> list[Comoments]:
    return [_comoments(numbers, width) for width in widths]


def _comoments(numbers: Iterator[Any], k: int) -> Comoments:
    (n,) = islice(numbers, 1)
    means, products, sums, extremes = (
        tuple(islice(numbers, width)) for width in (k, k * (k + 1) // 2, len(triples(k)), 3)
    )
    if n == 0:
        return Comoments.empty(k)
    thirds = central_thirds(n, means, products, [each / SCALE / SCALE / SCALE for each in sums])
    return Comoments(int(n), means, products, thirds, Extremes(*extremes))


def _moved_back(
    moments: Sequence[Comoments], centres: Iterator[float], constants: Iterator[float | None]
) -> list[Comoments]:
    """Convert moments of deviations to moments of the values."""
    shifted = []
    for each in moments:
        k = len(each.means)
        means = tuple(mean + at for mean, at in zip(each.means, islice(centres, k), strict=True))
        moved = replace(each, means=means) if each.n else each
        shifted.append(moved.with_constants(list(islice(constants, k))))
    return shifted
