"""Warm-up requests match the signature, or the error names the request and the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.lib.errors import Invalid
from apps.models.triton import TritonRefused, infer_inputs
from apps.models.warmup import (
    WARMUP_FILE,
    WARMUP_REQUESTS_MAX,
    check_warmup,
    encode_warmup,
    read_warmup,
)

SIGNATURE = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}], "outputs": []}


def fitting(rows: int = 1, **fields: Any) -> list[dict[str, Any]]:
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [rows, 64], "data": [0.5] * rows * 64}
    return [{**tensor, **fields}]


@pytest.mark.parametrize("data", [[0.5] * 128, [[0.5] * 64] * 2])
def test_a_matching_request_is_accepted_flat_or_nested(data: list[Any]) -> None:
    request = fitting(rows=2, data=data)
    assert check_warmup([request], SIGNATURE) == [request]


def test_the_encoding_is_empty_for_none_and_deterministic() -> None:
    assert encode_warmup([]) == ""
    turned = [dict(reversed(fitting()[0].items()))]
    assert encode_warmup([fitting()]) == encode_warmup([turned])


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ({}, "must be a list"),
        ([{}], "request 1 is not a list of inputs"),
        ([fitting(), []], "request 2 has input 'pixels' 0 times"),
        ([fitting() * 2], "2 times"),
        ([[*fitting(), {"name": "x"}]], "'x', which the version does not have"),
        ([fitting(datatype="FP64")], "input 'pixels' has datatype 'FP64', not 'FP32'"),
        ([fitting(shape=[1, 65])], r"shape \[1, 65\], which does not match"),
        ([fitting(shape=[64])], "does not match"),
        ([fitting(shape=[0, 64], data=[])], "no valid shape"),
        ([fitting(shape=[True, 64])], "no valid shape"),
        ([fitting(shape=None)], "no valid shape"),
        ([fitting(data=[1.0])], r"1 values in data; its shape \[1, 64\] needs 64"),
        ([fitting(data=None)], "0 values"),
        ([fitting(data=[float("nan")] * 64)], "cannot be written as JSON"),
        ([fitting()] * (WARMUP_REQUESTS_MAX + 1), "17 warm-up requests; the maximum is 16"),
        ([fitting(rows=300)], "the maximum is 65,536, because they are part of the routing table"),
    ],
)
def test_a_mismatch_is_named(requests: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        check_warmup(requests, SIGNATURE)


def test_requests_are_read_from_the_directory_of_the_model(tmp_path: Path) -> None:
    assert read_warmup(tmp_path, SIGNATURE) == []
    (tmp_path / WARMUP_FILE).write_text(encode_warmup([fitting()]))
    assert read_warmup(tmp_path, SIGNATURE) == [fitting()]
    (tmp_path / WARMUP_FILE).write_text("{")
    with pytest.raises(Invalid, match="is not JSON"):
        read_warmup(tmp_path, SIGNATURE)


def test_a_request_is_sent_to_triton_unchanged() -> None:
    (pixels,) = infer_inputs(fitting(rows=2))
    assert pixels.shape() == [2, 64]
    assert np.frombuffer(pixels._get_binary_data(), np.float32).tolist() == [0.5] * 128
    texts = [{"name": "t", "datatype": "BYTES", "shape": [2, 1], "data": [["ä"], ["b"]]}]
    assert infer_inputs(texts)[0]._get_binary_data() == b"\2\0\0\0\xc3\xa4\1\0\0\0b"


@pytest.mark.parametrize("data", [["x"] * 64, [[0.5], [0.5, 1.0]]])
def test_invalid_data_fails_the_warm_up(data: list[Any]) -> None:
    with pytest.raises(TritonRefused, match="warm-up data of pixels"):
        infer_inputs(fitting(data=data))
