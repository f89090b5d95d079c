"""`[],[],…` without compression: in megabytes, and in bodies that look small."""

import pytest

REFUSALS = {
    "lists_as_they_are": {"413 body_too_large", "503 too_many_bytes", "closed"},
    "lists_of_60_kb": {"400 too_many_elements"},
    "lists_of_4_kb": {"400 malformed_request"},
    "plain_of_60_kb": {"400 malformed_request"},
    "objects": {"400 too_many_elements", "503 too_many_bytes", "closed"},
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_dense_documents_block_no_other_client(ground, name):
    answers = await ground.attack(name)
    assert answers
    assert set(answers) <= REFUSALS[name]
