"""Prometheus checks: the query that is asked, and what each form of answer means."""

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


def found(kind: str, result: Any) -> dict[str, Any]:
    body = {"status": "success", "data": {"resultType": kind, "result": result}}
    return read_answer("Prometheus", "up", Answer(200, json.dumps(body).encode()), NOW)


def one(value: str, at: float = AT) -> list[dict[str, Any]]:
    return [{"metric": {}, "value": [at, value]}]


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ('errors{model="{model}",v="{version}"}', 'errors{model="digits",v="12"}'),
        ('a{v="{version}"} / b{v="{stable}"}', 'a{v="12"} / b{v="11"}'),
        ('up{job="{other}"}', 'up{job="{other}"}'),
        ("sum by (x) (up{})", "sum by (x) (up{})"),
    ],
)
def test_placeholders_are_filled_and_other_braces_stay(query: str, asked: str) -> None:
    assert fill_query(query, VALUES) == asked


def test_what_is_filled_in_cannot_leave_its_label_string() -> None:
    evil = 'x"} or vector(0) #\\\n'
    assert fill_query('up{m="{model}"}', {**VALUES, "model": evil}) == (
        'up{m="x\\"} or vector(0) #\\\\\\n"}'
    )


@pytest.mark.parametrize(("kind", "result"), [("scalar", [AT, "0.25"]), ("vector", one("0.25"))])
def test_one_number_is_the_value(kind: str, result: Any) -> None:
    assert found(kind, result) == {"query": "up", "value": 0.25, "at": AT}


@pytest.mark.parametrize(
    ("kind", "result", "why"),
    [
        ("vector", [], "the answer is empty"),
        ("vector", one("NaN"), "the answer is NaN"),
        ("scalar", [AT, "NaN"], "the answer is NaN"),
        ("scalar", [AT, "+Inf"], "the answer is +Inf"),
        ("vector", one("1", AT - AGE_MAX_S - 1), "the answer is 61 s old"),
    ],
)
def test_no_number_of_now_is_nothing(kind: str, result: Any, why: str) -> None:
    assert found(kind, result) == {"query": "up", "nothing": why}


@pytest.mark.parametrize(
    ("kind", "result", "why"),
    [
        ("vector", one("1") + one("2"), "answers 2 series to up; aggregate them into one"),
        ("matrix", [], "a matrix is not a number"),
        ("string", [AT, "1"], "a string is not a number"),
        ("vector", [{"metric": {}, "histogram": [AT, {}]}], "cannot be read"),
        ("vector", one("much"), "answers 'much', not a number"),
        ("scalar", "1", "cannot be read"),
    ],
)
def test_any_other_answer_is_the_providers_error(kind: str, result: Any, why: str) -> None:
    with pytest.raises(ProviderError, match=why):
        found(kind, result)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (refusal(400, status="error", errorType="bad_data", error="1:4: parse error"),
         "Prometheus answers 400: bad_data: 1:4: parse error"),
        (refusal(503, status="error", errorType="timeout", error="slow"), "503: timeout: slow"),
        (refusal(200, status="success"), "answers without data"),
        (Answer(502, b"<html>bad gateway</html>"), "answers 502 with what is not of Prometheus'"),
        (Answer(200, b""), "answers 200 with what is not of Prometheus'"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_prometheus_own_words(given: Answer, why: str) -> None:
    with pytest.raises(ProviderError, match=why):
        read_answer("Prometheus", "up", given, NOW)


def test_without_an_address_it_says_which_setting_is_missing() -> None:
    with pytest.raises(ProviderError, match="INTERLOCK_PROMETHEUS_URL is not set"):
        query_call("", "up")


def test_a_password_in_the_address_is_told_to_nobody() -> None:
    call = query_call("https://me:secret@metrics:9090/prom/", "up")
    assert call.url == "https://me:secret@metrics:9090/prom/api/v1/query"
    assert call.who == "Prometheus at https://metrics:9090"
