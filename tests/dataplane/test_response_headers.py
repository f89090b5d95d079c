"""The values of `server-timing` are those that formatting floats would give."""

import re

from hypothesis import given
from hypothesis import strategies as st

from dataplane.response_headers import CACHED_LINES, COMPUTED_LINES, cached_stages, computed_stages

seconds = st.floats(0, 0.2) | st.floats(0, 1e4)


def check(line, names, values):
    assert line.startswith(b"server-timing: ")
    assert line.endswith(b"\r\n")
    stages = re.findall(rb"(\w+);dur=(\d+\.\d\d)[,\r]", line)
    assert [name for name, _ in stages] == names
    for (_, shown), value in zip(stages, values, strict=True):
        assert abs(float(shown) - value * 1e3) <= 0.0051


@given(st.lists(seconds, min_size=5, max_size=5))
def test_a_computed_answer_has_five_stages(values):
    line = COMPUTED_LINES % (*computed_stages(values[0], b"first", *values[1:]), b"id")
    check(line, [b"read", b"first", b"queue", b"infer", b"total"], values)


@given(st.lists(seconds, min_size=3, max_size=3))
def test_an_answer_from_the_cache_has_three(values):
    check(CACHED_LINES % (*cached_stages(*values), b"id"), [b"read", b"cache", b"total"], values)
