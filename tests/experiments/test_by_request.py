"""Outcomes that name their request: whose they are, when they happened, and which version's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.experiments.by_request import FUTURE, UNKNOWN_VERSION
from apps.experiments.ingestion import record_outcomes
from apps.experiments.models import OutcomeRow, TouchedUnit, VersionOutcomes
from apps.experiments.outcomes import parse_and_record
from contract.messages import Outcome
from contract.request_ids import request_id_head, request_id_unit
from tests.experiments.factories import NOW, NOW_MS, make_metric, make_model, outcome

pytestmark = pytest.mark.django_db


def request_id(at_ms: int = NOW_MS, unit: str = "", version: str = "2") -> str:
    behind = request_id_unit(unit) if unit else b""
    return (b"%b%x%b" % (request_id_head("digits", version, "a1"), at_ms * 10**6, behind)).decode()


def record(*outcomes: Outcome) -> list[str]:
    """Record them; return the reasons of those that were refused."""
    return [each.reason for each in record_outcomes(outcomes, NOW).refused]


@pytest.fixture(autouse=True)
def digits() -> None:
    make_model()
    make_metric()
    make_metric("stars", "mean")


def test_an_outcome_takes_the_unit_of_its_request_and_is_never_before_it() -> None:
    given = {"unit_id": "", "request_id": request_id(NOW_MS - 1_000, "u7")}

    assert (
        record(
            outcome("behind", occurred_at_ms=NOW_MS - 61_000, **given),
            outcome("right", occurred_at_ms=NOW_MS - 500, **given),
        )
        == []
    )

    rows = {row.event_id: row for row in OutcomeRow.objects.all()}
    assert {row.unit for row in rows.values()} == {"u7"}
    assert rows["behind"].occurred_at == NOW - timedelta(seconds=1)
    assert rows["right"].occurred_at == NOW - timedelta(seconds=0.5)


def test_a_request_from_a_fast_clock_is_of_now() -> None:
    record(outcome(request_id=request_id(NOW_MS + 2_000)))
    assert OutcomeRow.objects.get().occurred_at == NOW


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"request_id": "7"}, "request_id is none that a prediction returned"),
        ({"request_id": request_id(unit="u2")}, "request_id is of another unit than unit_id"),
        ({"request_id": request_id(version="9")}, UNKNOWN_VERSION),
        ({"request_id": request_id(version="x")}, UNKNOWN_VERSION),
        ({"request_id": request_id(NOW_MS + 3_601_000)}, FUTURE),
        ({"unit_id": ""}, "unit_id is empty"),
    ],
)
def test_one_that_cannot_be_used_is_refused_and_costs_the_others_nothing(
    given: dict[str, str], reason: str
) -> None:
    assert record(outcome("bad", **given), outcome("good")) == [reason]
    assert OutcomeRow.objects.get().event_id == "good"


def test_labels_count_for_the_version_that_answered_by_the_hour_of_its_answer() -> None:
    hour_ms = 3_600_000
    answered = [(NOW_MS - hour_ms, 1.0), (NOW_MS - 2, 1.0), (NOW_MS - 1, 0.0)]
    labels = [
        outcome(f"e{i}", unit_id="", value=value, request_id=request_id(at_ms))
        for i, (at_ms, value) in enumerate(answered)
    ]

    record(*labels, outcome("unit only"), outcome("s", metric="stars", value=4.0,
                                                  request_id=request_id()))  # fmt: skip

    found = VersionOutcomes.objects.order_by("metric__name", "hour")
    assert [(row.version.number, row.hour, row.n, row.total) for row in found] == [
        (2, NOW - timedelta(hours=1), 3, 2.0),
        (2, NOW, 1, 4.0),
    ]
    # Whoever asked without a unit has no values to make.
    assert set(TouchedUnit.objects.values_list("unit", flat=True)) == {"u1"}


def test_a_label_that_comes_again_counts_once() -> None:
    label = outcome("e", unit_id="", request_id=request_id())
    record(label, label)
    record(label)
    record(outcome("f", unit_id="", value=0.0, request_id=request_id()))

    row = VersionOutcomes.objects.get()
    assert (row.n, row.total) == (2, 1.0)


def test_rest_takes_them_and_names_what_is_wrong_by_its_position() -> None:
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
        (2, "request_id is none that a prediction returned"),
        (3, "unit_id is empty"),
    ]
    # The first one is of no unit, so none that met nothing.
    assert report.strangers == (1,)
