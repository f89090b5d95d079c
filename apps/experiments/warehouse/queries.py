"""The queries over units as Ibis expressions: sums, counts and ranks, which every engine has.

Variances take two passes, as Chan, Golub and LeVeque (1983) advise: first the means by arm and
level, then the sums of the deviations and of their products. No engine's own variance is used: some
compute it from sums of squares, which lose their digits if a mean is large relative to its standard
deviation.
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
# Third powers of deviations at this scale stay within the range of floats; some engines reject an
# overflow.
SCALE = 1e-20
# The columns of a unit's values of each metric, in the order of the scan.
Names = list[list[str]]


def missing_means(units: Expr, places: Sequence[int]) -> Expr:
    """Query the mean of each of these values over the units that have it: `v1`, …"""
    units = units.filter(~units.crossed_over)
    return units.aggregate(**{f"v{place}": units[f"v{place}"].mean() for place in places})


def phase_counts(units: Expr, scan: Scan) -> Expr:
    """Query the units exposed to each variant in each phase: `variant`, `phase`, `kept`, …"""
    units = units.mutate(phase=_phase(units, scan), moved=_moved(units, scan))
    return units.group_by(["variant", "phase"]).aggregate(
        kept=as_number(~units.crossed_over & ~units.moved).sum(),
        crossed_over=as_number(units.crossed_over).sum(),
        moved=as_number(~units.crossed_over & units.moved).sum(),
    )


# --- values --------------------------------------------------------------------------------------


def select_values(units: Expr, scan: Scan, dimension: str = "") -> tuple[Expr, Names]:
    """Return the units in an arm, and the names of the value columns of each metric.

    The columns are `variant`, `phase`, `level` and each metric's values. Raises Unavailable if the
    exposures have no such dimension.
    """
    units = units.filter(~units.crossed_over & ~_moved(units, scan))
    if scan.since:
        units = units.filter(units.at >= ibis.literal(scan.phases[scan.since].at))
    columns: dict[str, Expr] = {"phase": _phase(units, scan), "level": _level(units, dimension)}
    names: Names = []
    for i in range(len(scan.metrics)):
        parts = {f"m{i}_{j}": part for j, part in enumerate(_values(units, scan, i))}
        columns |= parts
        names.append(list(parts))
    return units.select("variant", **columns), names


def _values(units: Expr, scan: Scan, place: int) -> list[Expr]:
    """Return a unit's values of one metric: all, or all NULL; see `unit_query.values`."""
    columns = scan.metrics[place]
    metric = columns.metric
    now = columns.places[: len(columns.places) // 2] if columns.has_covariate else columns.places
    is_ratio = metric.kind == Metric.Kind.RATIO
    first = units[f"v{now[0]}"]
    if metric.missing_is_zero or is_ratio:
        first = first.fill_null(0.0)
    if metric.cap is not None:
        first = (first > metric.cap).ifelse(metric.cap, first)
    parts = [first]
    if is_ratio:
        parts.append(units[f"v{now[1]}"].fill_null(0.0))
    parts += [units[f"v{at}"].fill_null(scan.missing.get(at, 0.0)) for at in before(columns)]
    is_counted: Expr = ibis.literal(True)
    if metric.window_s is not None:
        is_counted &= units.at + ibis.interval(seconds=metric.window_s) <= ibis.literal(scan.now)
    if not metric.missing_is_zero:
        is_counted &= units[f"v{now[-1]}"].notnull()
    return [is_counted.ifelse(value.cast("float64"), ibis.null("float64")) for value in parts]


def _phase(units: Expr, scan: Scan) -> Expr:
    """Return the index of the phase in which a unit was exposed."""
    phase: Expr = ibis.literal(0, "int64")
    for later in scan.phases[1:]:
        phase += as_number(units.at >= ibis.literal(later.at))
    return phase


def _moved(units: Expr, scan: Scan) -> Expr:
    """Return whether a unit's bucket moved after its exposure, or weights were changing then.

    See `Scan.moved`.
    """
    moved: Expr = ibis.literal(False)
    for phase in scan.phases:
        if phase.settled_at is not None:
            settled_at = ibis.literal(phase.settled_at)
            moved |= (units.at >= ibis.literal(phase.at)) & (units.at < settled_at)
    for i, (phase, later) in enumerate(zip(scan.phases, scan.phases[1:], strict=False)):
        is_exposed = units.at < ibis.literal(later.at)
        if i:
            is_exposed &= units.at >= ibis.literal(phase.at)
        for low, high in phase.moved:
            moved |= is_exposed & (units.bucket >= low) & (units.bucket < high)
    return moved


def _level(units: Expr, dimension: str) -> Expr:
    if not dimension:
        return ibis.literal("")
    if dimension not in units.columns:
        raise Unavailable(
            f"The warehouse dataset 'exposures' has no column for the dimension '{dimension}'."
        )
    level = units[dimension].cast("string")
    return (
        level.nullif("").fill_null(NO_LEVEL) if dimension == TENANT else level.fill_null(NO_LEVEL)
    )


# --- moments -------------------------------------------------------------------------------------


def level_sums(units: Expr, names: Names) -> Expr:
    """Query the sums that `comoments` reads, by `variant`, `phase` and `level`.

    `units` is the number of units.
    """
    every = [name for parts in names for name in parts]
    means = units.group_by(GROUPS).aggregate(
        **{f"{name}_mean": units[name].mean() for name in every}
    )
    joined = units.inner_join(means, GROUPS)
    deviations = joined.mutate(
        **{f"{name}_off": joined[name] - joined[f"{name}_mean"] for name in every}
    )
    sums: dict[str, Expr] = {"units": deviations.count()}
    for parts in names:
        sums[f"{parts[0]}_n"] = deviations[parts[0]].count()
        for i, name in enumerate(parts):
            off = deviations[f"{name}_off"]
            # One value for the whole group.
            sums[f"{name}_mean"] = deviations[f"{name}_mean"].max()
            sums |= {f"{name}_min": deviations[name].min(), f"{name}_max": deviations[name].max()}
            sums[f"{name}_off"] = off.sum()
            sums |= {
                f"{name}_{other}": (off * deviations[f"{other}_off"]).sum() for other in parts[i:]
            }
        scaled = [deviations[f"{name}_off"] * SCALE for name in parts]
        sums |= {
            _third(parts[0], three): (scaled[three[0]] * scaled[three[1]] * scaled[three[2]]).sum()
            for three in triples(len(parts))
        }
        sums[f"{parts[0]}_others"] = as_number(deviations[parts[0]] != 0.0).sum()
    return deviations.group_by(GROUPS).aggregate(**sums)


def _third(first: str, places: tuple[int, int, int]) -> str:
    return f"{first}_{''.join(map(str, places))}_third"


def comoments(row: Mapping[str, Any], parts: Sequence[str]) -> Comoments:
    """Return one metric's co-moments from a row, corrected for the rounding of the means."""
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
    extremes_of = [(float(row[f"{name}_min"]), float(row[f"{name}_max"])) for name in parts]
    constants = [low if low == high else None for low, high in extremes_of]
    # The means of the deviations from the first pass's means.
    offsets = [off[name] / n for name in parts]
    sums = [
        float(row[_third(parts[0], three)]) / SCALE / SCALE / SCALE for three in triples(len(parts))
    ]
    thirds = central_thirds(n, offsets, products, sums)
    extremes = Extremes(int(row[f"{parts[0]}_others"]), *extremes_of[0])
    return Comoments(n, means, tuple(products), thirds, extremes).with_constants(constants)


# --- distributions
# -------------------------------------------------------------------------------------


def values_at_ranks(units: Expr, name: str, ranks_by_arm: Mapping[str, Sequence[int]]) -> Expr:
    """Query each arm's values at these 1-based ranks: `variant`, `rank`, `value`."""
    values = units.filter(units[name].notnull()).select("variant", value=units[name])
    rank = ibis.row_number().over(ibis.window(group_by="variant", order_by="value"))
    ranked = values.mutate(rank=rank + 1)
    return ranked.filter(
        ibis.or_(
            *(
                (ranked.variant == arm) & ranked["rank"].isin(sorted(set(ranks)))
                for arm, ranks in ranks_by_arm.items()
            )
        )
    )


def count_equal(units: Expr, name: str, quantiles: Mapping[str, float]) -> Expr:
    """Query the number of each arm's values that equal its quantile: `variant`, `n`."""
    same = ibis.or_(
        *(
            (units.variant == arm) & (units[name] == ibis.literal(value, "float64"))
            for arm, value in quantiles.items()
        )
    )
    equal = units.filter(same)
    return equal.group_by("variant").aggregate(n=equal.count())


def count_bins(units: Expr, name: str, edges: Sequence[float]) -> Expr:
    """Query the number of units of each arm between these edges: `variant`, `place`, `n`."""
    values = units.filter(units[name].notnull())
    place: Expr = ibis.literal(0, "int64")
    for edge in edges:
        place += as_number(values[name] >= edge)
    values = values.mutate(place=place)
    return values.group_by(["variant", "place"]).aggregate(n=values.count())
