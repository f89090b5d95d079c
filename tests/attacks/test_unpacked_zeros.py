"""A gigabyte of zeros in a megabyte of gzip."""


async def test_a_body_is_decompressed_up_to_its_limit_only(ground):
    answers = await ground.attack("zeros")
    assert answers
    assert set(answers) <= {"413 body_too_large", "400 compression_ratio", "503 too_many_bytes"}
