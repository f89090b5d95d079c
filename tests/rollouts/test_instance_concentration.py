"""Errors on one instance of several are no proof against a version."""

from __future__ import annotations

from apps.rollouts.checks import CheckSettings, Frame, judge_error_rate, series_of
from apps.rollouts.eprocess import BucketCounts
from apps.rollouts.instance_concentration import dominant_source
from apps.rollouts.verdicts import Verdict

BAD, GOOD = BucketCounts(50, 25, 950, 9), BucketCounts(50, 0, 950, 9)


def test_one_of_three_that_fails_alone_is_named() -> None:
    assert dominant_source([{"a": GOOD, "b": BAD, "c": GOOD}] * 5, 0.01) == "b"


def test_two_of_three_are_no_single_source() -> None:
    assert dominant_source([{"a": GOOD, "b": BAD, "c": BAD}] * 5, 0.01) == ""


def test_one_or_two_instances_are_too_few() -> None:
    assert dominant_source([{"a": GOOD, "b": BAD}] * 5, 0.01) == ""
    assert dominant_source([], 0.01) == ""


def test_instances_without_canary_traffic_do_not_count() -> None:
    idle = BucketCounts(0, 0, 950, 9)
    assert dominant_source([{"a": idle, "b": BAD, "c": idle}] * 5, 0.01) == ""


def test_a_failure_on_one_instance_is_for_a_person() -> None:
    series = series_of([BucketCounts(150, 25, 2_850, 27)] * 5)
    three = {"a": GOOD, "b": BAD, "c": GOOD}
    single, every = (
        judge_error_rate(series, CheckSettings(), Frame(instances=lambda _, rows=rows: [rows] * 5))
        for rows in (three, {"b": BAD})
    )
    assert single.verdict is Verdict.INCONCLUSIVE
    assert "but only on instance b" in single.reason
    assert every.verdict is Verdict.FAIL
