"""A gigabyte of zeros in a megabyte of gzip."""


async def test_a_body_is_unpacked_no_further_than_its_bound(ground):
    answers = await ground.attack("zeros")
    assert answers
    assert set(answers) <= {"413 body_too_large", "400 compression_ratio", "503 too_many_bytes"}
