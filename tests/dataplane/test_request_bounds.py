"""Documents are counted before they are parsed, and limited to what a signature can need."""

import orjson
import pytest

from contract.routing import Signature, Tensor
from dataplane.errors import Refusal
from dataplane.request_bounds import (
    CHEAP_BYTES_MAX,
    EXTRA_VALUES_MAX,
    LISTS_MAX,
    Bounds,
    bounds_of,
    check_text,
    is_cheap,
)


def signature(*shapes, datatype="FP32"):
    inputs = tuple(Tensor(name=f"x{i}", datatype=datatype, shape=s) for i, s in enumerate(shapes))
    return Signature(inputs=inputs, outputs=())


def refused(text, bounds):
    with pytest.raises(Refusal) as caught:
        check_text(text, bounds)
    return caught.value.status, caught.value.code


def test_a_fixed_signature_bounds_values_and_bytes():
    bounds = bounds_of(signature((-1, 3, 4), (-1, 2)), batched=True, rows_max=8)
    assert bounds.values_max == 8 * (12 + 2) + EXTRA_VALUES_MAX
    assert refused(b"[" + b"1," * bounds.values_max + b"1]", bounds) == (400, "too_many_elements")
    assert refused(b"[]," * (bounds.values_max + 1), bounds) == (400, "too_many_elements")
    assert refused(b"{}:" * (bounds.values_max + 1), bounds) == (400, "too_many_elements")
    assert refused(b" " * (bounds.bytes_max + 1), bounds) == (413, "body_too_large")


@pytest.mark.parametrize("nest", [False, True])
def test_the_largest_request_that_fits_passes(nest):
    bounds = bounds_of(signature((-1, 64, 64, 3)), batched=True, rows_max=4)
    flat = [-2.2250738585072014e-308] * (4 * 64 * 64 * 3)
    rows = [[[flat[:3]] * 64] * 64] * 4 if nest else flat
    document = {"inputs": [{"name": "x0", "datatype": "FP32", "shape": [4, 64, 64, 3]}]}
    document["inputs"][0]["data"] = rows
    check_text(orjson.dumps(document, option=orjson.OPT_INDENT_2 if not nest else 0), bounds)


def test_with_free_dimensions_only_lists_and_objects_are_limited():
    bounds = bounds_of(signature((-1, -1)), batched=True, rows_max=8)
    assert (bounds.bytes_max, bounds.values_max) == (None, None)
    check_text(b"[" + b"1," * 2_000_000 + b"1]", bounds)
    assert refused(b"[]," * (LISTS_MAX + 1), bounds) == (400, "too_many_elements")


def test_brackets_in_strings_are_not_lists():
    bounds = bounds_of(signature((-1, 1), datatype="BYTES"), batched=True, rows_max=8)
    text = b'[{\\"a\\": [1, 2]}, {}]' * 50_000
    check_text(b'{"data":["%b"]}' % text, bounds)
    lists = b'{"data":["x",%b[]]}' % (b"[]," * 50_000)
    assert refused(lists, bounds) == (400, "too_many_elements")


def test_an_unknown_signature_has_limits_too():
    assert refused(b'{"a":[%b{}]}' % (b'{"":1},' * 5_000), Bounds()) == (400, "too_many_elements")


@pytest.mark.parametrize(
    ("text", "cheap"),
    [
        (b"[]," * 1_000, True),
        (b"[]," * 2_000, False),
        (b"1.5," * 16_000, True),
        (b"1" * (CHEAP_BYTES_MAX + 1), False),
        (b'"",' * 2_000, False),
    ],
)
def test_dense_or_long_documents_are_read_elsewhere(text, cheap):
    assert is_cheap(text) is cheap
