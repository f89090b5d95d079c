"""Assertions that two sources agree."""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import combinations_with_replacement

import pytest

from apps.experiments.stats.comoments import Comoments, triples
from apps.experiments.sufficient_statistics import ExperimentStatistics
from apps.experiments.warehouse.export import Exported
from apps.experiments.warehouse.source import Warehouse, connect
from tests.experiments.factories import NOW

# The time of the analysis in these tests.
LATER = NOW + timedelta(seconds=150, microseconds=250_001)
# The relative error of one rounding: half the distance from 1 to the next float.
EPS = 2.0**-53
SEEDS = [11, 12, 13]
ONE_SEED = pytest.mark.parametrize("experiment", SEEDS[:1], indirect=True)


def warehouse(files: Exported) -> Warehouse:
    names = {"exposures": files.exposures, "outcomes": files.outcomes, "measured": files.measured}
    return connect("duckdb://", **{name: str(path) for name, path in names.items()})


def same(one: Comoments, other: Comoments) -> None:
    """Assert that both agree up to the rounding of the units' values.

    These are sums of a few outcomes, and may differ in their last digits.
    """
    assert one.n == other.n
    assert one.means == pytest.approx(other.means, rel=16 * EPS, abs=0.0)
    k = len(one.means)
    for i, j in combinations_with_replacement(range(k), 2):
        a, b = (math.sqrt(one.product(x, x)) for x in (i, j))
        # Σ|deviation| ≤ √n · √Σdeviation²; a value is at most four times the mean, and is a sum of
        # three numbers with two roundings.
        known = math.sqrt(one.n) * (abs(one.means[i]) * b + abs(one.means[j]) * a)
        assert abs(one.product(i, j) - other.product(i, j)) <= EPS * (16 * a * b + 8 * known)
    assert one.extremes == other.extremes
    for places, first, second in zip(triples(k), one.thirds, other.thirds, strict=True):
        spread = math.prod(math.sqrt(one.product(x, x)) for x in places)
        # An error of this size in a skewness, √n times this, does not matter.
        assert abs(first - second) <= 1e-3 / max(one.n, 1) * spread


def all_same(one: ExperimentStatistics, other: ExperimentStatistics) -> None:
    assert one.data.arms == other.data.arms
    assert one.data.exposed == other.data.exposed
    assert one.data.phases == other.data.phases
    counted = [(g.crossed_over, g.moved, g.unknown_variants, g.holdout_units) for g in (one, other)]
    assert counted[0] == counted[1]
    assert counted[0][0] > 0
    assert counted[0][1] > 0
    for a, b in zip(one.data.metrics, other.data.metrics, strict=True):
        assert a.spec == b.spec
        assert set(a.arms) == set(b.arms)
        # An edge is a mean plus deviations, and may be close to 0.
        known = 1e-12 * max(map(abs, a.edges), default=0.0)
        assert a.edges == pytest.approx(b.edges, rel=0.0, abs=known)
        for name, arm in a.arms.items():
            same(arm.comoments, b.arms[name].comoments)
            assert arm.order == b.arms[name].order
            assert arm.counts == b.arms[name].counts
            assert set(arm.strata) == set(b.arms[name].strata)
            assert {stratum.phase for stratum in arm.strata} == {0, 1}
            for stratum, units in arm.strata.items():
                same(units, b.arms[name].strata[stratum])
        for dimension, levels in a.breakdowns.items():
            assert list(levels) == list(b.breakdowns[dimension])
            for level, arms in levels.items():
                for name, each in arms.items():
                    other_arm = b.breakdowns[dimension][level][name]
                    same(each.comoments, other_arm.comoments)
                    assert set(each.strata) == set(other_arm.strata)
                    for phase, units in each.strata.items():
                        same(units, other_arm.strata[phase])
