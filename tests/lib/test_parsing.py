"""Untrusted JSON is bounded before it is parsed; errors name the position."""

import io

import pytest

from apps.lib.errors import Invalid, TooLarge
from apps.lib.parsing import DEPTH_MAX, VALUES_MAX, BoundedJSONParser, load_json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 50_000, f"over {DEPTH_MAX} deep: line 1 column {DEPTH_MAX + 1}"),
        ('{"a":' * 50_000, "deep: line 1 column"),
        ("[\n" * 70, f"deep: line {DEPTH_MAX + 1} column 1"),
        ("[" + "1," * VALUES_MAX + "1]", f"over {VALUES_MAX} values"),
        ("[[]" + "[]" * VALUES_MAX + "]", f"over {VALUES_MAX} values"),
        ('{"a":\n 1,}', "line 2"),
        ("[NaN]", "NaN is not a valid JSON number"),
        ("[" + "1" * 5_000 + "]", "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_an_error_names_the_fault_and_its_position(text, message):
    with pytest.raises(Invalid, match="The body") as caught:
        load_json(text)
    assert message in caught.value.message


def test_brackets_in_strings_do_not_count_as_depth():
    text = '{"a": "' + "[" * 1_000 + '\\"' + "{" * 1_000 + '", "b": [[1]]}'
    assert load_json(text)["b"] == [[1]]


def test_documents_up_to_the_bounds_are_read():
    assert load_json("[" * DEPTH_MAX + "]" * DEPTH_MAX)
    assert len(load_json("[" + "1," * (VALUES_MAX - 1) + "1]")) == VALUES_MAX


def test_a_body_is_read_no_further_than_its_bound(settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    stream = io.BytesIO(b" " * 1_000 + b"{}")
    with pytest.raises(TooLarge, match="over 100 bytes"):
        BoundedJSONParser().parse(stream)
    assert stream.tell() == 101


def test_bytes_that_are_not_text_are_refused():
    with pytest.raises(Invalid, match="not text"):
        BoundedJSONParser().parse(io.BytesIO(b'{"a": "\xff"}'))
