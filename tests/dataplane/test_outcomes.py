import json

import pytest

from dataplane.errors import Refusal
from dataplane.outcomes import OUTCOMES_MAX, read_outcomes

GOOD = {"unit_id": "u1", "metric": "correct", "value": 1}


def read(document, now_ms=5_000):
    return read_outcomes(json.dumps(document).encode(), now_ms, lambda: "made")


def test_one_outcome_needs_no_list():
    (outcome,) = read(GOOD)
    assert (outcome.unit_id, outcome.metric, outcome.value) == ("u1", "correct", 1.0)
    assert (outcome.event_id, outcome.occurred_at_ms) == ("made", 5_000)


def test_all_fields_may_be_set():
    at = "2026-11-24T12:00:00.250+01:00"
    document = {**GOOD, "unit_id": 7, "value": True, "occurred_at": at, "event_id": "e"}
    (outcome,) = read([document], now_ms=1_795_518_001_000)
    assert (outcome.unit_id, outcome.value, outcome.event_id) == ("7", 1.0, "e")
    assert outcome.occurred_at_ms == 1_795_518_000_250


def test_a_z_is_a_time_zone():
    (outcome,) = read({**GOOD, "occurred_at": "1970-01-01T00:00:01Z"})
    assert outcome.occurred_at_ms == 1_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit_id": ""}, "'unit_id' must be a string of 1 to 200"),
        ({"unit_id": None}, "'unit_id'"),
        ({"metric": "m" * 101}, "'metric'"),
        ({"value": "1"}, "'value' must be a number"),
        ({"value": None}, "'value' must be a number"),
        ({"occurred_at": "yesterday"}, "not a valid ISO 8601 timestamp: 'yesterday'"),
        ({"occurred_at": "2026-11-24T12:00:00"}, "must have a time zone"),
        ({"occurred_at": 5}, "must be an ISO 8601 string"),
        ({"event_id": ""}, "'event_id'"),
        ({"event_id": "a\x00"}, "'event_id' contains a NUL character"),
        ({"value": -1e101}, "'value' must be between -1e+100 and 1e+100"),
        ({"occurred_at": "1970-01-01T01:00:06Z"}, "more than an hour in the future"),
        ({"occurred_at": "1969-01-01T00:00:04Z"}, "more than a year ago"),
        ({"occurred_at": "0001-01-01T00:00:00Z"}, "more than a year ago"),
        ({"occurred_at": "9999-12-31T23:59:59Z"}, "more than an hour in the future"),
        ({"extra": 1}, "unknown field 'extra'"),
    ],
)
def test_an_invalid_item_is_named_by_its_index(changes, message):
    with pytest.raises(Refusal) as caught:
        read([GOOD, {**GOOD, **changes}])
    assert (caught.value.status, caught.value.code) == (400, "invalid_outcome")
    (entry,) = caught.value.details
    assert entry["index"] == 1
    assert message in entry["error"]


def test_an_item_that_is_not_an_object_is_named():
    with pytest.raises(Refusal, match="must be an object"):
        read([5])


def test_invalid_json_is_refused():
    with pytest.raises(Refusal) as caught:
        read_outcomes(b"{", 0, str)
    assert caught.value.code == "malformed_json"


def test_a_number_too_large_for_a_float_is_refused():
    with pytest.raises(Refusal):
        read_outcomes(b'{"unit_id":"u","metric":"m","value":1e999}', 0, str)


def test_too_many_at_once_are_refused():
    with pytest.raises(Refusal) as caught:
        read([GOOD] * (OUTCOMES_MAX + 1))
    assert caught.value.status == 413


ID = "digits:4:7f3a9c01-18eb150b04698940"
AT_MS = 0x18EB150B04698940 // 1_000_000


@pytest.mark.parametrize(
    ("fields", "unit"),
    [
        ({"request_id": ID}, ""),
        ({"request_id": ID, "unit_id": "u1"}, "u1"),
        ({"request_id": f"{ID}:dTE"}, "u1"),
        ({"request_id": f"{ID}:dTE", "unit_id": "u1"}, "u1"),
        ({"request_id": None, "unit_id": "u1"}, "u1"),
        ({"request_id": "", "unit_id": "u1"}, "u1"),
        ({"request_id": f"{ID}:dTE", "unit_id": ""}, "u1"),
        ({"request_id": ID, "unit_id": None}, ""),
    ],
)
def test_an_outcome_may_be_of_a_request(fields, unit):
    (outcome,) = read({"metric": "m", "value": 1, **fields}, AT_MS)
    assert outcome.unit_id == unit
    assert outcome.request_id == (fields["request_id"] or "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"request_id": "7"}, "request_id is not the id of a prediction"),
        ({"request_id": 7}, "'request_id' must be a string"),
        ({"request_id": ["a"]}, "'request_id' must be a string"),
        ({"request_id": "a:b:1-1"}, "request_id is of a request that is more than a year old"),
        ({"request_id": "%00:1:a1-1", "unit_id": "u"}, "request_id is not the id of a prediction"),
        ({"request_id": f"{ID}:dQA"}, "request_id is not the id of a prediction"),
        ({"request_id": ""}, "'unit_id' must be"),
        ({"request_id": f"{ID}:dTE", "unit_id": "u2"}, "request_id is of another unit"),
        ({}, "'unit_id' must be"),
    ],
)
def test_an_invalid_request_id_is_refused_with_a_reason(fields, message):
    with pytest.raises(Refusal, match=message) as refused:
        read({"metric": "m", "value": 1, **fields}, AT_MS)
    assert refused.value.status == 400
