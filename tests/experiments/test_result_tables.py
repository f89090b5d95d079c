"""Formatting of results: a missing number is a dash, and the most severe notice comes first."""

from __future__ import annotations

from typing import Any

import pytest

from apps.experiments.result_tables.breakdowns import breakdowns, guardrail_tone, held_out
from apps.experiments.result_tables.legacy_results import upgrade_schema
from apps.experiments.result_tables.notices import notices
from apps.experiments.result_tables.results import group_by_role, metric_rows, select_metric
from apps.experiments.result_tables.wording import NOTHING, Scale, p_value, probability, scale_of
from tests.experiments import stored
from tests.experiments.stored import NOTHING_SEEN, guardrail, metric, stored_result

PAIR = ("weak", "strong")
RATE, MS = Scale(is_rate=True), Scale(unit="ms")
# A stored result of schema 1, with one metric.
READING = {"p_value": 1e-9, "low": 0.07, "high": 0.21, "alpha": 0.025}
OLDER: dict[str, Any] = {
    "kind": "proportion",
    "direction": "increase",
    "verdict": "strong is better than weak.",
    "winner": "strong",
    "is_significant": True,
    "arms": [
        {"name": "weak", "n": 500, "mean": 0.8, "exposed_n": 500, "is_control": True},
        {"name": "strong", "n": 500, "mean": 0.94, "exposed_n": 500, "is_control": False},
    ],
    "comparisons": [
        {
            "arm": "strong",
            "outcome": "better",
            "deciding": "sequential",
            "difference": 0.14,
            "sequential": READING,
            "fixed": READING,
        }
    ],
}


def test_a_variant_reads_with_its_units_difference_and_verdict() -> None:
    (row,) = metric_rows(stored_result(), PAIR, {})
    control, treatment = row.cells

    assert (control.outcome, control.value, control.difference) == ("control", "80 %", NOTHING)
    assert (treatment.value, treatment.difference, treatment.uplift) == (
        "94 %",
        "+14 points",
        "+17.5 %",
    )
    assert (treatment.outcome, treatment.interval, treatment.p_holm) == (
        "better",
        "+7 to +21",
        "0.02",
    )


def test_the_deciding_reading_is_the_one_in_the_overview() -> None:
    compared = stored.comparison("strong", deciding="fixed-horizon")
    (row,) = metric_rows(stored_result(metric(comparisons=[compared])), PAIR, {})

    assert row.is_final
    assert row.cells[1].interval == row.cells[1].fixed_interval == "+10 to +18"
    assert row.cells[1].sequential_interval == "+7 to +21"


def test_a_missing_value_is_a_dash() -> None:
    (row,) = metric_rows(NOTHING_SEEN, PAIR, {})

    for cell in row.cells:
        assert cell.value == cell.difference == cell.interval == cell.p == NOTHING
        assert cell.chance_to_beat == cell.fixed_p == cell.uplift_interval == NOTHING


def test_a_variant_that_is_missing_from_the_result_has_a_cell_without_numbers() -> None:
    (row,) = metric_rows(stored_result(), ("weak", "strong", "late"), {})

    assert (row.cells[2].outcome, row.cells[2].value, row.cells[2].n) == ("no data", NOTHING, None)


def test_before_the_first_result_there_is_no_row() -> None:
    assert metric_rows({}, PAIR, {}) == []
    assert select_metric([], "accuracy") is None


def test_metrics_are_grouped_by_role_and_selected_by_name() -> None:
    result = stored_result(metric(), metric("revenue", role="secondary"), guardrail("errors"))
    rows = metric_rows(result, PAIR, {})

    assert [(g.title, [r.name for r in g.rows]) for g in group_by_role(rows)] == [
        ("Primary", ["accuracy"]),
        ("Secondary", ["revenue"]),
        ("Guardrails", ["errors"]),
    ]
    assert [select_metric(rows, name).name for name in ("errors", "gone", None)] == [  # type: ignore[union-attr]
        "errors",
        "accuracy",
        "accuracy",
    ]


@pytest.mark.parametrize(
    ("judged", "tone", "words"),
    [
        ({"state": "not-worse"}, "good", "within the margin"),
        ({"state": "worse"}, "bad", "worse than the margin"),
        ({"state": "undecided"}, "quiet", "undecided"),
        ({"state": "not-worse", "deteriorated": True}, "warn", "but proven worse"),
    ],
)
def test_a_guardrail_reads_by_its_margin(judged: dict[str, Any], tone: str, words: str) -> None:
    compared = stored.comparison("strong", non_inferiority={"bound": -0.004, **judged})
    (row,) = metric_rows(stored_result(guardrail("errors", comparisons=[compared])), PAIR, {})

    assert (row.cells[1].tone, row.cells[1].bound) == (tone, "-0.4 points")
    assert words in row.cells[1].outcome


def test_ten_variants_by_twenty_metrics_have_two_hundred_cells() -> None:
    rows = metric_rows(stored.many(), [f"v{i}" for i in range(10)], {})

    assert len(rows) == 20
    assert {len(row.cells) for row in rows} == {10}


@pytest.mark.parametrize(
    ("scale", "level", "change"),
    [
        (RATE, "12.35 %", "+12.3 points"),
        (MS, "0.12346 ms", "+0.1235 ms"),
        (Scale(), "0.12346", "+0.1235"),
    ],
)
def test_values_read_in_their_own_scale(scale: Scale, level: str, change: str) -> None:
    assert scale.level(0.123456) == level
    assert scale.change(0.123456) == change


def test_scales_follow_kind_and_source() -> None:
    assert scale_of("proportion") == scale_of("ratio", "errors") == scale_of("mean", "cache")
    assert scale_of("quantile", "latency") == MS
    assert scale_of("mean") == Scale()


def test_large_and_tiny_numbers_stay_readable() -> None:
    assert Scale().level(1_234_567.8) == "1,234,568"
    assert p_value(1e-300) == "< 1e-300"
    assert [p_value(value) for value in (0.0, 0.0123, 0.0001)] == ["< 1e-300", "0.012", "1.0e-04"]
    assert [probability(value) for value in (0.99999, 0.00001, 0.5)] == [
        "> 99.9 %",
        "< 0.1 %",
        "50 %",
    ]


def test_a_breakdown_has_a_row_for_each_level_and_arm() -> None:
    compared = {"arm": "strong", "n": 5, "control_n": 6, "difference": 0.1, "low": 0.0, "high": 0.2}
    level = {"level": "", "comparisons": [compared | {"p_value": 0.5, "p_adjusted": 1.0}]}
    breakdown = {"metric": "accuracy", "dimension": "tenant", "levels": [level]}

    (table,) = breakdowns({"breakdowns": [breakdown]}, "accuracy", RATE)

    assert table.dimension == "tenant"
    assert (table.rows[0].level, table.rows[0].difference, table.rows[0].p_adjusted) == (
        "(none)",
        "+10 points",
        "1",
    )
    assert breakdowns({"breakdowns": [breakdown]}, "revenue", RATE) == []


def test_the_hold_out_stands_beside_control() -> None:
    result = stored_result(holdout={"units": 60, "means": {"accuracy": 0.79}})

    summary = held_out(result, {})

    assert summary is not None
    assert (summary.units, summary.means) == (60, (("accuracy", "79 %", "80 %"),))
    assert held_out(stored_result(), {}) is None


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], ("quiet", NOTHING)),
        (["not-worse", "worse"], ("bad", "1 worse")),
        (["not-worse"], ("good", "all hold")),
        (["not-worse", None], ("quiet", "undecided")),
    ],
)
def test_guardrails_read_as_a_whole(states: list[str | None], expected: tuple[str, str]) -> None:
    assert guardrail_tone(states) == expected


def test_without_problems_there_is_no_notice() -> None:
    assert notices({}) == notices(stored_result()) == []


def test_the_most_severe_notice_comes_first() -> None:
    quality = {"exposed": 100, "crossed_over": 5, "moved": 3, "waiting": 10}
    quality |= {"unknown_variants": {"gone": 3}, "refused_outcomes": {"why": 2}}
    result = {"sample_ratio": {"state": "srm", "reason": "units 9 : 1"}, "quality": quality}

    notes = notices(result, refresh_error="DataError: x", awaits_final=True)

    tones = ["bad", "bad", "bad", "busy", "warn", "busy", "busy", "warn"]
    assert [notice.tone for notice in notes] == tones
    assert "from an earlier one" in notes[0].text
    assert "Sample ratio mismatch: units 9 : 1" in notes[1].text
    assert "final analysis is pending" in notes[3].text


def test_few_crossovers_give_a_notice_but_no_warning() -> None:
    (notice,) = notices({"quality": {"exposed": 1_000, "crossed_over": 5}})

    assert notice.tone == "busy"


def test_suspicious_shares_give_a_warning_before_the_mismatch_is_proven() -> None:
    ratio = {"state": "ok", "reason": "", "p_value": 1e-9, "observed": [378, 154]}

    (notice,) = notices({"sample_ratio": ratio})

    assert notice.tone == "warn"
    assert "378 : 154" in notice.text


def test_a_result_frozen_in_the_first_schema_still_reads() -> None:
    (row,) = metric_rows(upgrade_schema(OLDER, "accuracy"), PAIR, {})

    assert (row.name, row.cells[0].exposed) == ("accuracy", 500)
    assert (row.cells[1].value, row.cells[1].outcome) == ("94 %", "better")
    assert upgrade_schema({}, "accuracy") == {}
