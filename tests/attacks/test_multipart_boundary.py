"""A form whose boundary is megabytes long, or never comes, is refused at once."""

from __future__ import annotations

from time import process_time

import pytest

from tests.rollouts.callers import caller

pytestmark = pytest.mark.django_db
PATH = "/api/v1/models/digits/versions/"


@pytest.mark.parametrize(
    ("boundary", "body"),
    [("a" * 5_000_000, b"--a"), ("b", b"-" * 5_000_000), ("b", b"\r\n--" * 1_000_000)],
    ids=["long", "dashes", "lines"],
)
def test_it_costs_little_and_is_refused(boundary: str, body: bytes) -> None:
    client = caller("operator")
    began = process_time()
    answer = client.post(PATH, body, content_type=f"multipart/form-data; boundary={boundary}")
    assert answer.status_code in {400, 415}
    assert process_time() - began < 2
