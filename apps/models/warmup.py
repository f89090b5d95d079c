"""Warm-up requests of a version: what it must have answered before it gets traffic.

A list of requests, each a list of inputs as the Open Inference Protocol writes them. They travel
with the routing table, so their size is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from apps.lib.errors import Invalid

WARMUP_BYTES_MAX = 64 * 1024
# The file may be written with more space, but it is read into memory whole.
WARMUP_FILE_BYTES_MAX = 1024**2
WARMUP_REQUESTS_MAX = 16

# Beside the MLmodel file of a registered version.
WARMUP_FILE = "warmup.json"

Request = list[dict[str, Any]]


def encode_warmup(requests: Sequence[Request]) -> str:
    """Return the JSON of `requests` as the routing table carries it: empty for none."""
    return json.dumps(requests, separators=(",", ":"), sort_keys=True) if requests else ""


def read_warmup(directory: Path, signature: Mapping[str, Any]) -> list[Request]:
    """Return the warm-up requests that came with a model; an empty list when none did.

    Raises:
        Invalid: the file cannot be read as such, or does not fit the signature.
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
    """Return `requests` when the version with this signature can take them.

    Raises:
        Invalid: they are not a list of lists of inputs, too many or too large, or an input does
            not fit; the message names the request and the input.
    """
    if not isinstance(requests, list):
        raise Invalid("Warm-up requests are a list; each request is a list of inputs.")
    if len(requests) > WARMUP_REQUESTS_MAX:
        raise Invalid(f"There are {len(requests)} warm-up requests; at most {WARMUP_REQUESTS_MAX}.")
    size = _size_of(requests)
    if size > WARMUP_BYTES_MAX:
        raise Invalid(
            f"The warm-up requests have {size:,} bytes as JSON; at most {WARMUP_BYTES_MAX:,}: "
            "they travel with the routing table."
        )
    wanted = {tensor["name"]: tensor for tensor in signature["inputs"]}
    for number, request in enumerate(requests, start=1):
        _check_request(f"Warm-up request {number}", request, wanted)
    return requests


def _size_of(requests: list[Any]) -> int:
    try:
        return len(json.dumps(requests, separators=(",", ":"), allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise Invalid(f"The warm-up requests cannot be written as JSON: {error}.") from error


def _check_request(what: str, request: Any, wanted: Mapping[str, Any]) -> None:
    if not isinstance(request, list) or not all(isinstance(item, dict) for item in request):
        raise Invalid(f"{what} is not a list of inputs.")
    names = [item.get("name") for item in request]
    for name in wanted:
        if names.count(name) != 1:
            raise Invalid(f"{what} has input {name!r} {names.count(name)} times; once is needed.")
    for item in request:
        # Of a list: a foreign name need not be one that can be hashed.
        if item.get("name") not in list(wanted):
            raise Invalid(
                f"{what} has input {item.get('name')!r}, which the version does not take."
            )
        _check_input(f"{what}, input {item['name']!r}", item, wanted[item["name"]])


def _check_input(what: str, item: Mapping[str, Any], tensor: Mapping[str, Any]) -> None:
    if item.get("datatype") != tensor["datatype"]:
        raise Invalid(f"{what} has datatype {item.get('datatype')!r}, not {tensor['datatype']!r}.")
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise Invalid(f"{what} has no shape: a list of whole numbers from 1 on.")
    expected = tensor["shape"]
    if len(shape) != len(expected) or any(
        want not in (-1, size) for size, want in zip(shape, expected, strict=True)
    ):
        raise Invalid(f"{what} has shape {shape}, which does not fit {expected}.")
    count = _count(item.get("data"))
    if count != prod(shape):
        raise Invalid(f"{what} has {count} values in data; its shape {shape} needs {prod(shape)}.")


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1


def _count(data: Any) -> int:
    """Return how many values `data` holds, flat or nested; 0 when it is no list."""
    if not isinstance(data, list):
        return 0
    return sum(_count(value) if isinstance(value, list) else 1 for value in data)
