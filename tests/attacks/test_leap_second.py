"""One outcome at 23:59:60Z, which exists but has no Unix time, had its whole batch refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apps.experiments.imports.rows import BadRow, outcome_of
from dataplane.errors import Refusal
from dataplane.outcomes import Outcomes, read_outcomes

GOOD = {"unit_id": "u1", "metric": "correct", "value": 1}
NEW_YEAR_MS = 1_483_228_800_000


def read(document: Any) -> Outcomes:
    return read_outcomes(json.dumps(document).encode(), NEW_YEAR_MS, lambda: "made")


@pytest.mark.parametrize(
    "instant",
    ["2016-12-31T23:59:60Z", "2017-01-01T05:29:60.5+05:30", "20161231T235960+0000"],
)
def test_the_leap_second_is_refused_and_not_its_batch(instant: str) -> None:
    outcomes = read([GOOD, {**GOOD, "occurred_at": instant}, {**GOOD, "unit_id": "u3"}])
    assert [each.unit_id for each in outcomes] == ["u1", "u3"]
    assert [each["index"] for each in outcomes.refused] == [1]
    assert "is a leap second" in str(outcomes.refused[0]["error"])


def test_alone_it_is_refused_with_the_reason() -> None:
    with pytest.raises(Refusal, match="is a leap second") as caught:
        read({**GOOD, "occurred_at": "2016-12-31T23:59:60Z"})
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "instant", ["2016-12-31T23:59:61Z", "2016-12-31T99:99:60Z", "2016-12-31T23:59:60", "20161260"]
)
def test_an_invalid_time_refuses_the_request_as_before(instant: str) -> None:
    with pytest.raises(Refusal):
        read([GOOD, {**GOOD, "occurred_at": instant}])


def test_with_another_error_the_request_is_refused_completely() -> None:
    with pytest.raises(Refusal) as caught:
        read([{**GOOD, "occurred_at": "2016-12-31T23:59:60Z"}, {**GOOD, "value": None}, GOOD])
    assert [each["index"] for each in caught.value.details] == [1]


def test_in_a_file_it_is_the_row_that_is_refused() -> None:
    with pytest.raises(BadRow, match="occurred_at is not a valid ISO 8601 timestamp"):
        outcome_of({**GOOD, "event_id": "e", "occurred_at": "2016-12-31T23:59:60Z"})
