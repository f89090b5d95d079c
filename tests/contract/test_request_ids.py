"""Ids of predictions: what is put in comes out, and nothing else is taken for one."""

import pytest

from contract.request_ids import (
    RequestId,
    RequestIdError,
    answer_key,
    parse_request_id,
    request_id_head,
    request_id_unit,
    unit_of,
)

AT_NS = 1_795_552_013_500_123_456


def made(model="digits", version="4", unit=None):
    behind = b"" if unit is None else request_id_unit(unit)
    return b"%b%x%b" % (request_id_head(model, version, "7f3a9c01"), AT_NS, behind)


def read(model, version, unit=""):
    return RequestId(model, version, AT_NS // 1_000_000 + 1, unit, answer_key("7f3a9c01", AT_NS))


def test_an_id_reads_as_what_it_says():
    assert made() == b"digits:4:7f3a9c01-18eb150b04698940"
    assert parse_request_id(made().decode()) == read("digits", "4")


@pytest.mark.parametrize("unit", ["u", "u1", "a:b", "Zoë", "山田太郎", "🚂" * 200, "\x7f?>~"])
@pytest.mark.parametrize("model", ["digits", "größe:1", "100%", "a b\r\n"])
def test_any_name_and_unit_comes_back(model, unit):
    text = made(model, "v 1", unit)
    # It stands in a header: one line of ASCII.
    assert text.isascii()
    assert b"\r" not in text
    assert b" " not in text
    assert parse_request_id(text.decode()) == read(model, "v 1", unit)


@pytest.mark.parametrize(
    "text",
    [
        "", "abc", "a:b", "a:b:c", "a:b:c-", "::1-1", "a:b:1-1:", "a:b:1-1:!", "a:b:1-1:u:u",
        "a:b:1-1:_w", "%ff:b:1-1", "a:b:1-zz", "a:b:1-1:é", "a:b:1-1_0",
        "a:b:1-1\n", "a:b:1-0x1", "a:b:" + "1" * 2_000,
    ],
)  # fmt: skip
def test_what_no_prediction_returned_is_refused(text):
    with pytest.raises(RequestIdError, match="request_id"):
        parse_request_id(text)


def test_an_outcome_is_its_requests_units_unless_both_say_otherwise():
    request = RequestId("digits", "4", 0, "u1")
    assert unit_of("", request) == unit_of("u1", request) == "u1"
    assert unit_of("u2", RequestId("digits", "4", 0)) == "u2"
    assert unit_of("", RequestId("digits", "4", 0)) == ""
    with pytest.raises(RequestIdError, match="another unit"):
        unit_of("u2", request)
