import json
from collections import Counter

from contract.bucketing import BUCKETS, bucket
from tests.contract.examples import GOLDEN


def test_the_published_vectors_hold():
    vectors = json.loads((GOLDEN / "bucketing.json").read_text())
    assert len(vectors) >= 30
    assert any(not unit.isascii() for _, unit, _ in vectors)
    for salt, unit, expected in vectors:
        assert bucket(salt, unit) == expected, (salt, unit)


def test_buckets_are_even():
    tenths = Counter(bucket("s", str(i)) * 10 // BUCKETS for i in range(100_000))
    assert len(tenths) == 10
    assert all(abs(count - 10_000) < 500 for count in tenths.values())


def test_salts_are_independent():
    both = sum(bucket("a", str(i)) < 1_000 and bucket("b", str(i)) < 1_000 for i in range(100_000))
    assert abs(both - 1_000) < 150
