"""Prometheus query checks: the question, and what its answer means.

An answer is used only if it is exactly one finite number of now; an empty one is no data, and
several numbers are a mistake in the query, never one of them picked by chance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

from apps.rollouts.provider_client import Answer, Call, ProviderError, printable, send, shown_url
from apps.rollouts.verdicts import JSON

# An answer that is older is a cache's, or of a server whose clock is wrong.
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
    """Put `values` for {model}, {version} and {stable}, escaped for a PromQL label string.

    Other braces are PromQL's own and stay as they are.
    """
    return PLACEHOLDER.sub(lambda found: _escape(values[found[1]]), query)


def _escape(value: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in value)


def ask_prometheus(base_url: str, query: str, now: datetime) -> dict[str, JSON]:
    """Return the observation. Raises ProviderError."""
    call = query_call(base_url, query)
    return read_answer(call.who, query, send(call), now)


def query_call(base_url: str, query: str) -> Call:
    """Return the instant query as a call. Raises ProviderError without a server to ask."""
    if not base_url:
        raise ProviderError("Prometheus cannot be asked: INTERLOCK_PROMETHEUS_URL is not set")
    return Call(
        who=f"Prometheus at {shown_url(base_url)}",
        url=f"{base_url.rstrip('/')}/api/v1/query",
        body=urlencode({"query": query}).encode(),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )


def read_answer(who: str, query: str, answer: Answer, now: datetime) -> dict[str, JSON]:
    """Return the observation: `query` and `value`, or `nothing` with why there is no number.

    Raises ProviderError when the answer cannot be used at all.
    """
    data = _data(who, answer)
    try:
        samples = _samples(data)
    except msgspec.ValidationError as error:
        raise ProviderError(f"{who} answers with what cannot be read: {error}") from None
    if len(samples) > 1:
        raise ProviderError(
            f"{who} answers {len(samples)} series to {query}; aggregate them into one"
        )
    if not samples:
        return {"query": query, "nothing": "the answer is empty"}
    at, text = samples[0]
    value = _number(who, text)
    if now.timestamp() - at > AGE_MAX_S:
        age_s = now.timestamp() - at
        return {"query": query, "nothing": f"the answer is {age_s:.0f} s old"}
    if not math.isfinite(value):
        return {"query": query, "nothing": f"the answer is {text}"}
    return {"query": query, "value": value, "at": at}


def _data(who: str, answer: Answer) -> _Data:
    try:
        response = _decoder.decode(answer.body)
    except msgspec.DecodeError:
        raise ProviderError(
            f"{who} answers {answer.status} with what is not of Prometheus' API"
        ) from None
    if response.status == "error" or answer.status != 200:
        told = printable(f"{response.errorType}: {response.error}")
        raise ProviderError(f"{who} answers {answer.status}: {told}")
    if response.data is None:
        raise ProviderError(f"{who} answers without data")
    return response.data


def _samples(data: _Data) -> list[tuple[float, str]]:
    if data.resultType == "scalar":
        return [msgspec.convert(data.result, tuple[float, str])]
    if data.resultType == "vector":
        return [series.value for series in msgspec.convert(data.result, list[_Series])]
    raise msgspec.ValidationError(f"a {printable(data.resultType)} is not a number")


def _number(who: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ProviderError(f"{who} answers {printable(text)!r}, not a number") from None
