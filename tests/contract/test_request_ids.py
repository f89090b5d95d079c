"""Ids of predictions can be parsed back, and any other text is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.messages import OUTCOME_AGE_MAX_S, OUTCOME_AHEAD_MAX_S
from contract.request_ids import (
    REQUEST_ID_LENGTH_MAX,
    UNIT_LENGTH_MAX,
    RequestId,
    RequestIdError,
    answer_key,
    check_age,
    parse_request_id,
    request_id_head,
    request_id_unit,
    unit_of,
)

AT_NS = 1_795_552_013_500_123_456


def make_id(model="digits", version="4", unit=None):
    behind = b"" if unit is None else request_id_unit(unit)
    return b"%b%x%b" % (request_id_head(model, version, "7f3a9c01"), AT_NS, behind)


def read(model, version, unit=""):
    return RequestId(model, version, AT_NS // 1_000_000 + 1, unit, answer_key("7f3a9c01", AT_NS))


def test_an_id_is_parsed_into_its_parts():
    assert make_id() == b"digits:4:7f3a9c01-18eb150b04698940"
    assert parse_request_id(make_id().decode()) == read("digits", "4")


@pytest.mark.parametrize("unit", ["u", "u1", "a:b", "Zoë", "山田太郎", "🚂" * 200, "\x7f?>~"])
@pytest.mark.parametrize("model", ["digits", "größe:1", "100%", "a b\r\n"])
def test_any_name_and_unit_comes_back(model, unit):
    text = make_id(model, "v 1", unit)
    # It is sent in a header: one line of ASCII.
    assert text.isascii()
    assert b"\r" not in text
    assert b" " not in text
    assert parse_request_id(text.decode()) == read(model, "v 1", unit)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)


@given(model=TEXT, version=TEXT, unit=TEXT)
def test_any_text_in_an_id_comes_back_or_is_too_long(model, version, unit):
    text = make_id(model, version, unit).decode()
    assert text.isascii()
    if len(text) <= REQUEST_ID_LENGTH_MAX and len(unit) <= UNIT_LENGTH_MAX:
        parsed = parse_request_id(text)
        assert (parsed.model, parsed.version, parsed.unit) == (model, version, unit)


@given(st.text() | st.from_regex(r"\A[a-z%0-9A-F]*:[%0-9]*:[0-9a-f]*-[0-9a-f]*(:[A-Za-z_-]*)?\Z"))
def test_any_other_text_is_refused_or_gives_parts_that_can_be_stored(text):
    try:
        parsed = parse_request_id(text)
    except RequestIdError:
        return
    assert "\x00" not in parsed.model + parsed.version + parsed.unit
    (parsed.model + parsed.version + parsed.unit).encode()
    assert len(parsed.unit) <= UNIT_LENGTH_MAX


def test_an_id_of_the_longest_names_and_unit_is_accepted():
    model, unit = "m" * 100, "\U0001f682" * UNIT_LENGTH_MAX
    assert parse_request_id(make_id(model, "9" * 20, unit).decode()).unit == unit


def test_an_id_with_a_unit_that_is_too_long_is_refused():
    with pytest.raises(RequestIdError, match="not the id of a prediction"):
        parse_request_id(make_id(unit="u" * (UNIT_LENGTH_MAX + 1)).decode())


def test_a_lone_surrogate_in_a_unit_is_replaced():
    assert parse_request_id(make_id(unit="u\ud800").decode()).unit == "u?"


@pytest.mark.parametrize(
    ("at_ms", "problem"),
    [
        (OUTCOME_AHEAD_MAX_S * 1_000, None),
        (OUTCOME_AHEAD_MAX_S * 1_000 + 1, "more than an hour in the future"),
        (-OUTCOME_AGE_MAX_S * 1_000, None),
        (-OUTCOME_AGE_MAX_S * 1_000 - 1, "more than a year old"),
    ],
)
def test_a_request_must_be_within_the_age_limits_of_outcomes(at_ms, problem):
    now_ms = AT_NS // 1_000_000
    request = RequestId("digits", "4", now_ms + at_ms)
    if problem is None:
        check_age(request, now_ms)
    else:
        with pytest.raises(RequestIdError, match=problem):
            check_age(request, now_ms)


@pytest.mark.parametrize(
    "text",
    [
        "a%00:1:1-1", "a:%00:1-1", "a:b:1-1:AA",
        "", "abc", "a:b", "a:b:c", "a:b:c-", "::1-1", "a:b:1-1:", "a:b:1-1:!", "a:b:1-1:u:u",
        "a:b:1-1:_w", "%ff:b:1-1", "a:b:1-zz", "a:b:1-1:é", "a:b:1-1_0",
        "a:b:1-1\n", "a:b:1-0x1", "a:b:" + "1" * 2_000,
    ],
)  # fmt: skip
def test_text_that_is_not_an_id_is_refused(text):
    with pytest.raises(RequestIdError, match="request_id"):
        parse_request_id(text)


def test_an_outcome_has_the_unit_of_its_request_unless_they_differ():
    request = RequestId("digits", "4", 0, "u1")
    assert unit_of("", request) == unit_of("u1", request) == "u1"
    assert unit_of("u2", RequestId("digits", "4", 0)) == "u2"
    assert unit_of("", RequestId("digits", "4", 0)) == ""
    with pytest.raises(RequestIdError, match="another unit"):
        unit_of("u2", request)
