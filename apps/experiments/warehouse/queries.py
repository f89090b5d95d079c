"""What is asked of the units, as Ibis expressions: sums, counts and ranks, which every engine has.

Spreads take two passes, as Chan, Golub and LeVeque (1983) advise: first the means by arm and level,
then sums of deviations from those and of their products. So no engine's own variance is trusted:
some compute it from sums of squares, which cancel where a mean is large against its spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ibis

from apps.experiments.lifecycle import TENANT
from apps.experiments.models import Metric
from apps.experiments.stats.comoments import Comoments, Extremes, central_thirds, triples
from apps.experiments.unit_query import Scan, before
from apps.experiments.warehouse.units import Expr, as_number
from apps.lib.errors import Unavailable

NO_LEVEL = "(none)"
GROUPS = ["variant", "phase", "level"]
# Third powers of deviations at this scale stay within the range of floats: some engines refuse what
# does not.
SCALE = 1e-20
# The columns of a unit's values of each metric, in the order of the scan.
Names = list[list[str]]


def missing_means(units: Expr, places: Sequence[int]) -> Expr:
    """Ask for the mean of each of those values over the units that have one: `v1`, …"""
    units = units.filter(~units.crossed_over)
    return units.aggregate(**{f"v{place}": units[f"v{place}"].mean() for place in places})


def phase_counts(units: Expr, scan: Scan) -> Expr:
    """Ask how many units met each variant in each phase: `variant`, `phase`, `kept`, …"""
    units = units.mutate(phase=_phase(units, scan), moved=_moved(units, scan))
    return units.group_by(["variant", "phase"]).aggregate(
        kept=as_number(~units.crossed_over & ~units.moved).sum(),
        crossed_over=as_number(units.crossed_over).sum(),
        moved=as_number(~units.crossed_over & units.moved).sum(),
    )


# --- values --------------------------------------------------------------------------------------


def select_values(units: Expr, scan: Scan, dimension: str = "") -> tuple[Expr, Names]:
    """Return the units in an arm as `variant`, `phase`, `level` and each metric's values, and
    whose names.

    Raises Unavailable when the exposures have no such dimension.
    """
    units = units.filter(~units.crossed_over & ~_moved(units, scan))
    if scan.since:
        units = units.filter(units.at >= ibis.literal(scan.phases[scan.since].at))
    found: dict[str, Expr] = {"phase": _phase(units, scan), "level": _level(units, dimension)}
    names: Names = []
    for i in range(len(scan.metrics)):
        parts = {f"m{i}_{j}": part for j, part in enumerate(_values(units, scan, i))}
        found |= parts
        names.append(list(parts))
    return units.select("variant", **found), names


def _values(units: Expr, scan: Scan, place: int) -> list[Expr]:
    """Return a unit's values of one metric: all of them, or all NULL; see `scan.values`."""
    columns = scan.metrics[place]
    metric = columns.metric
    now = columns.places[: len(columns.places) // 2] if columns.has_covariate else columns.places
    is_ratio = metric.kind == Metric.Kind.RATIO
    first = units[f"v{now[0]}"]
    if metric.missing_is_zero or is_ratio:
        first = first.fill_null(0.0)
    if metric.cap is not None:
        first = (first > metric.cap).ifelse(metric.cap, first)
    found = [first]
    if is_ratio:
        found.append(units[f"v{now[1]}"].fill_null(0.0))
    found += [units[f"v{at}"].fill_null(scan.missing.get(at, 0.0)) for at in before(columns)]
    counts: Expr = ibis.literal(True)
    if metric.window_s is not None:
        counts &= units.at + ibis.interval(seconds=metric.window_s) <= ibis.literal(scan.now)
    if not metric.missing_is_zero:
        counts &= units[f"v{now[-1]}"].notnull()
    return [counts.ifelse(value.cast("float64"), ibis.null("float64")) for value in found]


def _phase(units: Expr, scan: Scan) -> Expr:
    """Return the place of the phase in which a unit was exposed."""
    phase: Expr = ibis.literal(0, "int64")
    for later in scan.phases[1:]:
        phase += as_number(units.at >= ibis.literal(later.at))
    return phase


def _moved(units: Expr, scan: Scan) -> Expr:
    """Return whether a unit's bucket moved after it was met, or weights just then; see
    `Scan.moved`.
    """
    found: Expr = ibis.literal(False)
    for phase in scan.phases:
        if phase.settled_at is not None:
            settled_at = ibis.literal(phase.settled_at)
            found |= (units.at >= ibis.literal(phase.at)) & (units.at < settled_at)
    for i, (phase, later) in enumerate(zip(scan.phases, scan.phases[1:], strict=False)):
        met = units.at < ibis.literal(later.at)
        if i:
            met &= units.at >= ibis.literal(phase.at)
        for low, high in phase.moved:
            found |= met & (units.bucket >= low) & (units.bucket < high)
    return found


def _level(units: Expr, dimension: str) -> Expr:
    if not dimension:
        return ibis.literal("")
    if dimension not in units.columns:
        raise Unavailable(f"The warehouse's exposures have no column {dimension}, a dimension.")
    level = units[dimension].cast("string")
    return (
        level.nullif("").fill_null(NO_LEVEL) if dimension == TENANT else level.fill_null(NO_LEVEL)
    )


# --- moments -------------------------------------------------------------------------------------


def level_sums(seen: Expr, names: Names) -> Expr:
    """Ask for what `comoments` reads, by `variant`, `phase` and `level`, and for how many `units`
    there are.
    """
    every = [name for parts in names for name in parts]
    means = seen.group_by(GROUPS).aggregate(**{f"{name}_mean": seen[name].mean() for name in every})
    near = seen.inner_join(means, GROUPS)
    away = near.mutate(**{f"{name}_off": near[name] - near[f"{name}_mean"] for name in every})
    asked: dict[str, Expr] = {"units": away.count()}
    for parts in names:
        asked[f"{parts[0]}_n"] = away[parts[0]].count()
        for i, name in enumerate(parts):
            off = away[f"{name}_off"]
            # One value for the whole group.
            asked[f"{name}_mean"] = away[f"{name}_mean"].max()
            asked |= {f"{name}_min": away[name].min(), f"{name}_max": away[name].max()}
            asked[f"{name}_off"] = off.sum()
            asked |= {f"{name}_{other}": (off * away[f"{other}_off"]).sum() for other in parts[i:]}
        scaled = [away[f"{name}_off"] * SCALE for name in parts]
        asked |= {
            _third(parts[0], three): (scaled[three[0]] * scaled[three[1]] * scaled[three[2]]).sum()
            for three in triples(len(parts))
        }
        asked[f"{parts[0]}_others"] = as_number(away[parts[0]] != 0.0).sum()
    return away.group_by(GROUPS).aggregate(**asked)


def _third(first: str, places: tuple[int, int, int]) -> str:
    return f"{first}_{''.join(map(str, places))}_third"


def comoments(row: Mapping[str, Any], parts: Sequence[str]) -> Comoments:
    """Read one metric's out of an answer; what the means were rounded by is taken off again."""
    n = int(row[f"{parts[0]}_n"])
    if n == 0:
        return Comoments.empty(len(parts))
    off = {name: float(row[f"{name}_off"]) for name in parts}
    means = tuple(float(row[f"{name}_mean"]) + off[name] / n for name in parts)
    products = []
    for i, name in enumerate(parts):
        for other in parts[i:]:
            product = float(row[f"{name}_{other}"]) - off[name] * (off[other] / n)
            products.append(max(0.0, product) if other == name else product)
    ends = [(float(row[f"{name}_min"]), float(row[f"{name}_max"])) for name in parts]
    constants = [low if low == high else None for low, high in ends]
    # About the first pass's means, the deviations have these.
    about = [off[name] / n for name in parts]
    sums = [
        float(row[_third(parts[0], three)]) / SCALE / SCALE / SCALE for three in triples(len(parts))
    ]
    thirds = central_thirds(n, about, products, sums)
    extremes = Extremes(int(row[f"{parts[0]}_others"]), *ends[0])
    return Comoments(n, means, tuple(products), thirds, extremes).with_constants(constants)


# --- spreads -------------------------------------------------------------------------------------


def values_at_ranks(seen: Expr, name: str, wanted: Mapping[str, Sequence[int]]) -> Expr:
    """Ask for each arm's values at these ranks, from 1 on: `variant`, `rank`, `value`."""
    known = seen.filter(seen[name].notnull()).select("variant", value=seen[name])
    rank = ibis.row_number().over(ibis.window(group_by="variant", order_by="value"))
    ranked = known.mutate(rank=rank + 1)
    return ranked.filter(
        ibis.or_(
            *(
                (ranked.variant == arm) & ranked["rank"].isin(sorted(set(ranks)))
                for arm, ranks in wanted.items()
            )
        )
    )


def count_equal(seen: Expr, name: str, quantiles: Mapping[str, float]) -> Expr:
    """Ask how many of each arm's values are equal to its quantile: `variant`, `n`."""
    same = ibis.or_(
        *(
            (seen.variant == arm) & (seen[name] == ibis.literal(value, "float64"))
            for arm, value in quantiles.items()
        )
    )
    equal = seen.filter(same)
    return equal.group_by("variant").aggregate(n=equal.count())


def count_bins(seen: Expr, name: str, edges: Sequence[float]) -> Expr:
    """Ask how many units of each arm lie between these edges: `variant`, `place`, `n`."""
    known = seen.filter(seen[name].notnull())
    place: Expr = ibis.literal(0, "int64")
    for edge in edges:
        place += as_number(known[name] >= edge)
    known = known.mutate(place=place)
    return known.group_by(["variant", "place"]).aggregate(n=known.count())
