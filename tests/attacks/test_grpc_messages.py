"""gRPC messages whose entries of two bytes become objects of a hundred, compressed or not."""

import pytest


@pytest.mark.parametrize("name", ["grpc_empty_inputs", "grpc_empty_inputs_packed"])
async def test_entries_are_counted_before_they_are_parsed(ground, name):
    answers = await ground.attack(name)
    assert set(answers) == {"INVALID_ARGUMENT"}


async def test_millions_of_typed_numbers_block_no_other_client(ground):
    answers = await ground.attack("grpc_typed_contents")
    assert answers
    assert set(answers) <= {"INVALID_ARGUMENT", "DEADLINE_EXCEEDED"}
