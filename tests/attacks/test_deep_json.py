"""14.6 kB of gzip decompress to 15 MB of `[],[],…`: five million objects."""

import pytest

REFUSALS = {
    "deep_json": "400 too_many_elements",
    "deep_json_plain": "400 compression_ratio",
    "deep_json_outcomes": "400 compression_ratio",
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_small_body_that_decompresses_to_millions_of_lists_is_refused(ground, name):
    answers = await ground.attack(name)
    assert set(answers) == {REFUSALS[name]}
    assert answers[REFUSALS[name]] > 100
