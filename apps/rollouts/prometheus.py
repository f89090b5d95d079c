"""Queries Prometheus for checks, and reads the result.

A result is used only if it is exactly one finite and recent number. An empty result is no data, and
several numbers are an error in the query: none of them may be picked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

from apps.rollouts.provider_client import Answer, Call, ProviderError, printable, redact_url, send
from apps.rollouts.verdicts import JSON

# An older sample comes from a cache, or from a server with a wrong clock.
AGE_MAX_S = 60.0
PLACEHOLDER = re.compile(r"\{(model|version|stable)\}")
ESCAPES = {"\\": "\\\\", '"': '\\"', "'": "\\'", "\n": "\\n"}


class _Data(msgspec.Struct):
    resultType: str  # noqa: N815 (Prometheus' name)
    result: Any


class _Response(msgspec.Struct):
    status: Literal["success", "error"]
    data: _Data | None = None
    errorType: str = ""  # noqa: N815 (Prometheus' name)
    error: str = ""


class _Series(msgspec.Struct):
    """A series of an instant vector; a native histogram has no `value`."""

    value: tuple[float, str]


_decoder = msgspec.json.Decoder(_Response)


def fill_query(query: str, values: Mapping[str, str]) -> str:
    """Insert `values` for {model}, {version} and {stable}, escaped for a PromQL label string.

    Other braces belong to PromQL and stay unchanged.
    """
    return PLACEHOLDER.sub(lambda match: _escape(values[match[1]]), query)


def _escape(value: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in value)


def query_prometheus(base_url: str, query: str, now: datetime) -> dict[str, JSON]:
    """Return the observation. Raises ProviderError."""
    call = query_call(base_url, query)
    return read_answer(call.service, query, send(call), now)


def query_call(base_url: str, query: str) -> Call:
    """Return the instant query as a call. Raises ProviderError if no server is configured."""
    if not base_url:
        raise ProviderError("Prometheus cannot be queried: INTERLOCK_PROMETHEUS_URL is not set")
    return Call(
        service=f"Prometheus at {redact_url(base_url)}",
        url=f"{base_url.rstrip('/')}/api/v1/query",
        body=urlencode({"query": query}).encode(),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )


def read_answer(service: str, query: str, answer: Answer, now: datetime) -> dict[str, JSON]:
    """Return the observation: `query` and `value`, or `nothing` with the reason for no number.

    Raises ProviderError if the answer is unusable.
    """
    data = _data(service, answer)
    try:
        samples = _samples(data)
    except msgspec.ValidationError as error:
        raise ProviderError(f"{service} returned an unreadable result: {error}") from None
    if len(samples) > 1:
        raise ProviderError(
            f"{service} returned {len(samples)} series for {query}; aggregate them into one"
        )
    if not samples:
        return {"query": query, "nothing": "the result is empty"}
    at, text = samples[0]
    value = _number(service, text)
    if now.timestamp() - at > AGE_MAX_S:
        age_s = now.timestamp() - at
        return {"query": query, "nothing": f"the sample is {age_s:.0f} s old"}
    if not math.isfinite(value):
        return {"query": query, "nothing": f"the value is {text}"}
    return {"query": query, "value": value, "at": at}


def _data(service: str, answer: Answer) -> _Data:
    try:
        response = _decoder.decode(answer.body)
    except msgspec.DecodeError:
        raise ProviderError(
            f"{service} returned {answer.status} with a body that is not from the Prometheus API"
        ) from None
    if response.status == "error" or answer.status != 200:
        message = printable(f"{response.errorType}: {response.error}")
        raise ProviderError(f"{service} returned {answer.status}: {message}")
    if response.data is None:
        raise ProviderError(f"{service} returned no data")
    return response.data


def _samples(data: _Data) -> list[tuple[float, str]]:
    if data.resultType == "scalar":
        return [msgspec.convert(data.result, tuple[float, str])]
    if data.resultType == "vector":
        return [series.value for series in msgspec.convert(data.result, list[_Series])]
    raise msgspec.ValidationError(f"result type {printable(data.resultType)} is not a number")


def _number(service: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ProviderError(f"{service} returned {printable(text)!r}, not a number") from None
