"""Warm-up requests of a version, which it must answer before it gets traffic.

A list of requests, each a list of inputs in the form of the Open Inference Protocol. They are part
of the routing table, so their size is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from apps.lib.errors import Invalid

WARMUP_BYTES_MAX = 64 * 1024
# The file may contain more whitespace, but it is read into memory whole.
WARMUP_FILE_BYTES_MAX = 1024**2
WARMUP_REQUESTS_MAX = 16

# Next to the MLmodel file of a registered version.
WARMUP_FILE = "warmup.json"

Request = list[dict[str, Any]]


def encode_warmup(requests: Sequence[Request]) -> str:
    """Return `requests` as JSON for the routing table; empty for none."""
    return json.dumps(requests, separators=(",", ":"), sort_keys=True) if requests else ""


def read_warmup(directory: Path, signature: Mapping[str, Any]) -> list[Request]:
    """Return the warm-up requests in the files of a model; empty if there are none.

    Raises:
        Invalid: the file is malformed, or does not match the signature.
    """
    path = directory / WARMUP_FILE
    if not path.is_file():
        return []
    if path.stat().st_size > WARMUP_FILE_BYTES_MAX:
        raise Invalid(f"its {WARMUP_FILE} is larger than {WARMUP_FILE_BYTES_MAX:,} bytes")
    try:
        requests = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Invalid(f"its {WARMUP_FILE} is not JSON: {error}") from error
    return check_warmup(requests, signature)


def check_warmup(requests: Any, signature: Mapping[str, Any]) -> list[Request]:
    """Return `requests` if they match `signature`.

    Raises:
        Invalid: they are not a list of lists of inputs, too many or too large, or an input does
            not match; the message names the request and the input.
    """
    if not isinstance(requests, list):
        raise Invalid("Warm-up requests must be a list of requests; a request is a list of inputs.")
    if len(requests) > WARMUP_REQUESTS_MAX:
        raise Invalid(f"{len(requests)} warm-up requests; the maximum is {WARMUP_REQUESTS_MAX}.")
    size = _size_of(requests)
    if size > WARMUP_BYTES_MAX:
        raise Invalid(
            f"The warm-up requests have {size:,} bytes as JSON; the maximum is "
            f"{WARMUP_BYTES_MAX:,}, because they are part of the routing table."
        )
    expected = {tensor["name"]: tensor for tensor in signature["inputs"]}
    for number, request in enumerate(requests, start=1):
        _check_request(f"Warm-up request {number}", request, expected)
    return requests


def _size_of(requests: list[Any]) -> int:
    try:
        return len(json.dumps(requests, separators=(",", ":"), allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise Invalid(f"The warm-up requests cannot be written as JSON: {error}.") from error


def _check_request(what: str, request: Any, expected: Mapping[str, Any]) -> None:
    if not isinstance(request, list) or not all(isinstance(item, dict) for item in request):
        raise Invalid(f"{what} is not a list of inputs.")
    names = [item.get("name") for item in request]
    for name in expected:
        if names.count(name) != 1:
            raise Invalid(f"{what} has input {name!r} {names.count(name)} times; expected once.")
    for item in request:
        # `in` a list: an invalid name may not be hashable.
        if item.get("name") not in list(expected):
            raise Invalid(
                f"{what} has input {item.get('name')!r}, which the version does not have."
            )
        _check_input(f"{what}, input {item['name']!r}", item, expected[item["name"]])


def _check_input(what: str, item: Mapping[str, Any], tensor: Mapping[str, Any]) -> None:
    if item.get("datatype") != tensor["datatype"]:
        raise Invalid(f"{what} has datatype {item.get('datatype')!r}, not {tensor['datatype']!r}.")
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise Invalid(f"{what} has no valid shape; expected a list of integers from 1.")
    expected = tensor["shape"]
    if len(shape) != len(expected) or any(
        limit not in (-1, size) for size, limit in zip(shape, expected, strict=True)
    ):
        raise Invalid(f"{what} has shape {shape}, which does not match {expected}.")
    count = _count(item.get("data"))
    if count != prod(shape):
        raise Invalid(f"{what} has {count} values in data; its shape {shape} needs {prod(shape)}.")


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1


def _count(data: Any) -> int:
    """Return the number of values in `data`, flat or nested; 0 if it is not a list."""
    if not isinstance(data, list):
        return 0
    return sum(_count(value) if isinstance(value, list) else 1 for value in data)
