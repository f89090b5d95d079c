"""Prometheus checks: the query that is sent, and the reading of each form of result."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from apps.rollouts.prometheus import AGE_MAX_S, fill_query, query_call, read_answer
from apps.rollouts.provider_client import Answer, ProviderError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AT = NOW.timestamp()
VALUES = {"model": "digits", "version": "12", "stable": "11"}


def refusal(code: int, **body: Any) -> Answer:
    return Answer(code, json.dumps(body).encode())


def read(kind: str, result: Any) -> dict[str, Any]:
    body = {"status": "success", "data": {"resultType": kind, "result": result}}
    return read_answer("Prometheus", "up", Answer(200, json.dumps(body).encode()), NOW)


def one(value: str, at: float = AT) -> list[dict[str, Any]]:
    return [{"metric": {}, "value": [at, value]}]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('errors{model="{model}",v="{version}"}', 'errors{model="digits",v="12"}'),
        ('a{v="{version}"} / b{v="{stable}"}', 'a{v="12"} / b{v="11"}'),
        ('up{job="{other}"}', 'up{job="{other}"}'),
        ("sum by (x) (up{})", "sum by (x) (up{})"),
    ],
)
def test_placeholders_are_filled_and_other_braces_stay(query: str, expected: str) -> None:
    assert fill_query(query, VALUES) == expected


def test_an_inserted_value_cannot_leave_its_label_string() -> None:
    evil = 'x"} or vector(0) #\\\n'
    assert fill_query('up{m="{model}"}', {**VALUES, "model": evil}) == (
        'up{m="x\\"} or vector(0) #\\\\\\n"}'
    )


@pytest.mark.parametrize(("kind", "result"), [("scalar", [AT, "0.25"]), ("vector", one("0.25"))])
def test_one_number_is_the_value(kind: str, result: Any) -> None:
    assert read(kind, result) == {"query": "up", "value": 0.25, "at": AT}


@pytest.mark.parametrize(
    ("kind", "result", "problem"),
    [
        ("vector", [], "the result is empty"),
        ("vector", one("NaN"), "the value is NaN"),
        ("scalar", [AT, "NaN"], "the value is NaN"),
        ("scalar", [AT, "+Inf"], "the value is +Inf"),
        ("vector", one("1", AT - AGE_MAX_S - 1), "the sample is 61 s old"),
    ],
)
def test_no_recent_number_has_its_reason(kind: str, result: Any, problem: str) -> None:
    assert read(kind, result) == {"query": "up", "nothing": problem}


@pytest.mark.parametrize(
    ("kind", "result", "problem"),
    [
        ("vector", one("1") + one("2"), "returned 2 series for up; aggregate them into one"),
        ("matrix", [], "result type matrix is not a number"),
        ("string", [AT, "1"], "result type string is not a number"),
        ("vector", [{"metric": {}, "histogram": [AT, {}]}], "returned an unreadable result"),
        ("vector", one("much"), "returned 'much', not a number"),
        ("scalar", "1", "returned an unreadable result"),
    ],
)
def test_any_other_result_is_a_provider_error(kind: str, result: Any, problem: str) -> None:
    with pytest.raises(ProviderError, match=problem):
        read(kind, result)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (refusal(400, status="error", errorType="bad_data", error="1:4: parse error"),
         "Prometheus returned 400: bad_data: 1:4: parse error"),
        (refusal(503, status="error", errorType="timeout", error="slow"), "503: timeout: slow"),
        (refusal(200, status="success"), "returned no data"),
        (Answer(502, b"<html>bad gateway</html>"), "returned 502 with a body that is not from"),
        (Answer(200, b""), "returned 200 with a body that is not from"),
    ],
)  # fmt: skip
def test_a_refusal_has_the_message_of_prometheus(answer: Answer, problem: str) -> None:
    with pytest.raises(ProviderError, match=problem):
        read_answer("Prometheus", "up", answer, NOW)


def test_without_an_address_the_message_names_the_setting() -> None:
    with pytest.raises(ProviderError, match="INTERLOCK_PROMETHEUS_URL is not set"):
        query_call("", "up")


def test_a_password_in_the_address_is_never_shown() -> None:
    call = query_call("https://me:secret@metrics:9090/prom/", "up")
    assert call.url == "https://me:secret@metrics:9090/prom/api/v1/query"
    assert call.service == "Prometheus at https://metrics:9090"
