"""How results read: no number reads as a dash, and the gravest warning comes first."""

from __future__ import annotations

from typing import Any

import pytest

from apps.experiments.models import Variant
from apps.experiments.stats.results import ArmSummary, analyse
from apps.experiments.tables import NOTHING, notices, variant_cells
from apps.models.models import ModelVersion

VARIANTS = [
    Variant(name="a", version=ModelVersion(number=1), weight_bp=5_000, is_control=True),
    Variant(name="b", version=ModelVersion(number=2), weight_bp=5_000),
]


def result(n: int, a: int, b: int) -> dict[str, Any]:
    arms = [
        ArmSummary.of_events("a", 5_000, n, a, is_control=True, exposed_n=n),
        ArmSummary.of_events("b", 5_000, n, b, exposed_n=n),
    ]
    return analyse(arms, kind="proportion", planned_units=1_000).to_json()


def test_a_variant_reads_with_its_units_difference_and_verdict() -> None:
    control, treatment = variant_cells(VARIANTS, result(500, 400, 470))

    assert (control.outcome, control.mean, control.difference) == ("control", "80 %", NOTHING)
    assert (treatment.mean, treatment.difference, treatment.uplift) == (
        "94 %",
        "+14 points",
        "+17.5 %",
    )
    assert treatment.outcome == "better"
    assert treatment.interval.startswith("+6.97 to ")


@pytest.mark.parametrize("stored", [{}, result(0, 0, 0)])
def test_what_does_not_exist_reads_as_a_dash(stored: dict[str, Any]) -> None:
    for row in variant_cells(VARIANTS, stored):
        assert row.mean == row.difference == row.interval == row.p_value == NOTHING


def test_without_anything_wrong_there_is_nothing_to_say() -> None:
    assert notices({}) == []
    assert notices(result(500, 400, 470)) == []


def test_the_gravest_comes_first() -> None:
    stored = {
        "sample_ratio": {"state": "srm", "reason": "units 9 : 1"},
        "quality": {
            "exposed": 100,
            "crossed_over": 5,
            "waiting": 10,
            "unknown_variants": {"gone": 3},
            "refused_outcomes": {"why": 2},
        },
    }

    found = notices(stored, refresh_error="DataError: x")

    assert [notice.tone for notice in found] == ["bad", "bad", "bad", "warn", "busy", "warn"]
    assert "older" in found[0].text
    assert "Sample-ratio mismatch: units 9 : 1" in found[1].text


def test_few_crossovers_are_told_and_no_warning() -> None:
    (notice,) = notices({"quality": {"exposed": 1_000, "crossed_over": 5}})

    assert notice.tone == "busy"


def test_shares_that_look_off_are_warned_of_before_they_are_proven() -> None:
    arms = [
        ArmSummary.of_events("a", 5_000, 378, 180, is_control=True),
        ArmSummary.of_events("b", 5_000, 154, 70),
    ]

    (notice,) = notices(analyse(arms, kind="proportion").to_json())

    assert notice.tone == "warn"
    assert "378 : 154" in notice.text
