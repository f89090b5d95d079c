"""Half a megabyte in chunks of two bytes, each of which would be an object of fifty bytes."""


async def test_chunks_of_two_bytes_take_no_more_memory_than_their_bytes(ground):
    answers = await ground.attack("small_chunks")
    assert answers
    assert set(answers) <= {"413 body_too_large", "400 too_many_elements"}
