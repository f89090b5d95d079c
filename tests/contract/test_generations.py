from __future__ import annotations

import pytest

from contract.generations import EPOCH_MAX, EPOCH_SIZE, epoch_of, first_of, in_words


def test_every_generation_of_the_next_epoch_is_newer() -> None:
    last_of_0, last_of_1 = EPOCH_SIZE - 1, 2 * EPOCH_SIZE - 1
    assert last_of_0 < first_of(1) < last_of_1 < first_of(2)
    assert [epoch_of(each) for each in (0, 1, last_of_0, first_of(1), last_of_1)] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("generation", "words"),
    [(0, "0"), (42, "42"), (-5, "-5"), (3_000_000_000_042, "42 of epoch 3")],
)
def test_a_generation_is_formatted_with_its_epoch(generation: int, words: str) -> None:
    assert in_words(generation) == words


def test_generations_are_exact_as_floats() -> None:
    last = first_of(EPOCH_MAX) + EPOCH_SIZE - 2
    assert int(float(last)) == last
    assert int(float(last + 1)) == last + 1
