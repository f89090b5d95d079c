"""Outcomes with a request id: their unit, time and version."""

from __future__ import annotations

import json
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest

from apps.experiments.imports.rows import BadRow, outcome_of
from apps.experiments.ingestion import record_outcomes
from apps.experiments.models import OutcomeRow, TouchedUnit, VersionOutcomes
from apps.experiments.outcomes import parse_and_record
from apps.experiments.request_outcomes import UNKNOWN_VERSION
from contract.messages import Outcome
from contract.request_ids import request_id_head, request_id_unit
from dataplane.errors import Refusal as DataPlaneRefusal
from dataplane.outcomes import read_outcomes
from tests.experiments.factories import NOW, NOW_MS, make_metric, make_model, outcome

pytestmark = pytest.mark.django_db
FUTURE = "request_id is of a request that is more than an hour in the future"


def request_id(at_ms: int = NOW_MS, unit: str = "", version: str = "2") -> str:
    behind = request_id_unit(unit) if unit else b""
    return (b"%b%x%b" % (request_id_head("digits", version, "a1"), at_ms * 10**6, behind)).decode()


def record(*outcomes: Outcome) -> list[str]:
    """Record the outcomes; return the reasons of refusals."""
    return [each.reason for each in record_outcomes(outcomes, NOW).refused]


@pytest.fixture(autouse=True)
def digits() -> None:
    make_model()
    make_metric()
    make_metric("stars", "mean")


def test_an_outcome_gets_the_unit_of_its_request_and_is_not_before_it() -> None:
    fields = {"unit_id": "", "request_id": request_id(NOW_MS - 1_000, "u7")}

    assert (
        record(
            outcome("behind", occurred_at_ms=NOW_MS - 61_000, **fields),
            outcome("right", occurred_at_ms=NOW_MS - 500, **fields),
        )
        == []
    )

    rows = {row.event_id: row for row in OutcomeRow.objects.all()}
    assert {row.unit for row in rows.values()} == {"u7"}
    assert rows["behind"].occurred_at == NOW - timedelta(seconds=1)
    assert rows["right"].occurred_at == NOW - timedelta(seconds=0.5)


def test_a_request_in_the_future_is_dated_now() -> None:
    record(outcome(request_id=request_id(NOW_MS + 2_000)))
    assert OutcomeRow.objects.get().occurred_at == NOW


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"request_id": "7"}, "request_id is not the id of a prediction"),
        ({"request_id": request_id(unit="u2")}, "request_id is of another unit than unit_id"),
        ({"request_id": request_id(version="9")}, UNKNOWN_VERSION),
        ({"request_id": request_id(version="x")}, UNKNOWN_VERSION),
        ({"request_id": request_id(NOW_MS + 3_601_000)}, FUTURE),
        ({"request_id": request_id(0)}, "request_id is of a request that is more than a year old"),
        ({"request_id": "%00:2:a1-1"}, "request_id is not the id of a prediction"),
        ({"request_id": "digits:2:a1-1:AA"}, "request_id is not the id of a prediction"),
        ({"unit_id": ""}, "unit_id is empty"),
    ],
)
def test_an_invalid_outcome_is_refused_and_does_not_affect_the_others(
    fields: dict[str, str], reason: str
) -> None:
    assert record(outcome("bad", **fields), outcome("good")) == [reason]
    assert OutcomeRow.objects.get().event_id == "good"


def test_any_number_of_versions_may_be_named_at_once(django_assert_max_num_queries: Any) -> None:
    strange = [
        outcome(f"e{n}", unit_id="", request_id=f"model-{n}:{n % 7}:a1-18eb150b04698940")
        for n in range(3_000)
    ]
    began = monotonic()
    with django_assert_max_num_queries(30):
        assert set(record(*strange, outcome(request_id=request_id()))) == {UNKNOWN_VERSION}
    assert monotonic() - began < 10.0
    assert OutcomeRow.objects.count() == 1


def test_labels_count_for_the_version_that_answered_by_the_hour_of_its_answer() -> None:
    hour_ms = 3_600_000
    answered = [(NOW_MS - hour_ms, 1.0), (NOW_MS - 2, 1.0), (NOW_MS - 1, 0.0)]
    labels = [
        outcome(f"e{i}", unit_id="", value=value, request_id=request_id(at_ms))
        for i, (at_ms, value) in enumerate(answered)
    ]

    record(*labels, outcome("unit only"), outcome("s", metric="stars", value=4.0,
                                                  request_id=request_id()))  # fmt: skip

    rows = VersionOutcomes.objects.order_by("metric__name", "hour")
    assert [(row.version.number, row.hour, row.n, row.total) for row in rows] == [
        (2, NOW - timedelta(hours=1), 3, 2.0),
        (2, NOW, 1, 4.0),
    ]
    # Requests without a unit touch no unit.
    assert set(TouchedUnit.objects.values_list("unit", flat=True)) == {"u1"}


def test_a_label_that_comes_again_counts_once() -> None:
    label = outcome("e", unit_id="", request_id=request_id())
    record(label, label)
    record(label)
    record(outcome("f", unit_id="", value=0.0, request_id=request_id()))

    row = VersionOutcomes.objects.get()
    assert (row.n, row.total) == (2, 1.0)


def test_rest_records_them_and_reports_refusals_by_position() -> None:
    common = {"metric": "accuracy", "value": 1}
    rows: list[dict[str, Any]] = [
        common | {"event_id": "a", "request_id": request_id()},
        common | {"event_id": "b", "request_id": request_id(unit="u1")},
        common | {"event_id": "c", "request_id": "7"},
        common | {"event_id": "d"},
    ]

    report = parse_and_record({"outcomes": rows}, NOW)

    assert report.recorded == 2
    assert [(each.index, each.reason) for each in report.refused] == [
        (2, "request_id is not the id of a prediction"),
        (3, "unit_id is empty"),
    ]
    # The first one has no unit, so it is not reported as unexposed.
    assert report.unexposed == (1,)


REQUEST = request_id(NOW_MS - 1_000, "u7")
NO_PREDICTION = "request_id is not the id of a prediction"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"request_id": REQUEST}, "u7"),
        ({"request_id": REQUEST, "unit_id": ""}, "u7"),
        ({"request_id": REQUEST, "unit_id": None}, "u7"),
        ({"request_id": REQUEST, "unit_id": "u7"}, "u7"),
        ({"request_id": "", "unit_id": "u1"}, "u1"),
        ({"request_id": None, "unit_id": "u1"}, "u1"),
        ({"request_id": request_id(), "unit_id": "u1"}, "u1"),
        ({"request_id": request_id()}, ""),
        ({"request_id": REQUEST, "unit_id": "u1"}, "request_id is of another unit than unit_id"),
        ({"request_id": "digits:2"}, NO_PREDICTION),
        ({"request_id": "%00:2:a1-1"}, NO_PREDICTION),
        ({"request_id": "x" * 2_001}, "request_id is longer than 2000 characters"),
        ({"request_id": request_id(NOW_MS + 3_601_000)}, FUTURE),
        ({"request_id": request_id(1)}, "request_id is of a request that is more than a year old"),
        ({"request_id": request_id(version="9")}, UNKNOWN_VERSION),
    ],
)
def test_every_way_in_gives_the_same_unit_or_reason(fields: dict[str, Any], expected: str) -> None:
    item = {"event_id": "e", "metric": "accuracy", "value": 1, **fields}
    answers = {}
    for way in (by_rest, by_data_plane, by_file):
        answers[way.__name__] = way(item)
        OutcomeRow.objects.all().delete()
    assert set(answers.values()) == {expected}, answers


def by_rest(item: dict[str, Any]) -> str:
    report = parse_and_record({"outcomes": [item]}, NOW)
    return report.refused[0].reason if report.refused else OutcomeRow.objects.get().unit


def by_data_plane(item: dict[str, Any]) -> str:
    try:
        outcomes = read_outcomes(json.dumps(item).encode(), NOW_MS, str)
    except DataPlaneRefusal as refusal:
        return str(refusal.details[0]["error"])
    return recorded(outcomes[0])


def by_file(item: dict[str, Any]) -> str:
    try:
        return recorded(outcome_of({**item, "occurred_at": NOW_MS}))
    except BadRow as problem:
        return str(problem)


def recorded(sent: Outcome) -> str:
    reasons = record(sent)
    return reasons[0] if reasons else OutcomeRow.objects.get().unit
