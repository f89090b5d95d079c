"""Pairs of answers that are kept to compare with later outcomes: which ones, and their content."""

import msgspec
import pytest

from contract.request_ids import parse_request_id
from contract.routing import Shadow
from dataplane.shadow.comparison import Comparison
from dataplane.shadow.counting import PAIRS_MAX
from tests.dataplane.shadow.shades import ROW, SHADOW, Negating, shades
from tests.dataplane.shadow.test_comparison import INF, NAN, TOLERANCE, output

PAIRED = msgspec.structs.replace(SHADOW, pairs=True)
NEGATIVE = [-1.0, -2.0, -3.0, -4.0]


def compared(*pairs):
    live, shadow = zip(*pairs, strict=True)
    return Comparison((live, 0), (shadow, 0), 1, TOLERANCE)


async def test_a_pair_has_its_request_and_both_answers():
    async with shades(Negating(), shadow=PAIRED) as plane:
        answer = await plane.ask(ROW, unit="a")
        await plane.settled()
        (pair,) = plane.shadows.drain_pairs()
        assert plane.shadows.drain_pairs() == []
    request = parse_request_id(answer.headers["x-interlock-request-id"])
    assert (pair.shadow, pair.unit, pair.request) == ("sh1", "a", request.answer)
    assert request.at_ms - 1 <= pair.at_ms <= request.at_ms
    assert (pair.stable_class, pair.shadow_class) == (1.0, 0.0)
    assert (pair.stable_score, pair.shadow_score) == (10.0, -10.0)


async def test_pairs_are_kept_only_if_enabled_and_for_single_rows():
    async with shades(Negating()) as plane:
        await plane.ask(ROW, unit="a")
        await plane.settled()
        assert plane.shadows.drain_pairs() == []
        plane.apply(generation=2, shadow=PAIRED)
        await plane.ask(ROW, NEGATIVE, unit="b")
        await plane.ask(ROW)
        await plane.settled()
        assert [pair.unit for pair in plane.shadows.drain_pairs()] == [""]


async def test_the_number_of_pairs_per_window_is_limited_whatever_they_say():
    async with shades(Negating(), shadow=PAIRED) as plane:
        # The first ones agree in their class: they must not make room for pairs that differ.
        for n in range(PAIRS_MAX + 5):
            await plane.ask(NEGATIVE if n < PAIRS_MAX else ROW, unit=f"u{n}")
        await plane.settled()
        first = plane.shadows.drain_pairs()
        plane.shadows.drain()
        await plane.ask(ROW, unit="next")
        await plane.settled()
        assert [pair.unit for pair in first] == [f"u{n}" for n in range(PAIRS_MAX)]
        assert [pair.unit for pair in plane.shadows.drain_pairs()] == ["next"]


async def test_a_pair_of_an_old_table_is_still_drained():
    async with shades(Negating(), shadow=PAIRED) as plane:
        await plane.ask(unit="a")
        await plane.settled()
        plane.apply(generation=2, shadow=None)
        for _ in range(3):
            plane.shadows.drain()
        assert len(plane.shadows.drain_pairs()) == 1


@pytest.mark.parametrize(
    ("pairs", "classes", "scores"),
    [
        # The first label is the class, whatever the scores are.
        ([(output("FP32", [0.9, 0.1]), output("FP32", [0.2, 0.8])),
          (output("INT64", [7]), output("INT64", [3]))], (7.0, 3.0), (0.1, 0.8)),
        # Without a label it is the index of the largest score.
        ([(output("FP32", [0.1, 0.7, 0.2]), output("FP32", [0.3, 0.3, 0.4]))], (1.0, 2.0),
         (None, None)),
        ([(output("BOOL", [True]), output("BOOL", [False]))], (1.0, 0.0), (None, None)),
        # One number is a score and no class.
        ([(output("FP64", [2.5]), output("FP64", [-1.0]))], (None, None), (2.5, -1.0)),
        # A single number takes precedence over the second of two.
        ([(output("FP32", [0.25, 0.75]), output("FP32", [0.5, 0.5])),
          (output("FP32", [3.0]), output("FP32", [4.0]))], (1.0, 0.0), (3.0, 4.0)),
        # Text has no number.
        ([(output("BYTES", [b"cat"]), output("BYTES", [b"dog"]))], (None, None), (None, None)),
        # Only finite numbers are scores.
        ([(output("FP32", [NAN]), output("FP32", [INF]))], (None, None), (None, None)),
        # Versions with different shapes cannot be compared.
        ([(output("FP32", [1.0]), output("FP32", [1.0, 2.0]))], (None, None), (None, None)),
    ],
)  # fmt: skip
def test_the_class_and_the_score_of_an_answer(pairs, classes, scores):
    comparison = compared(*pairs)
    assert comparison.classes() == classes
    assert comparison.scores() == pytest.approx(scores)


def test_the_table_says_whether_pairs_are_kept():
    assert not Shadow(id="s", salt="s", version="1", share_bp=1).pairs
