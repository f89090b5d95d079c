"""One bad item failed the whole batch (kserve's batcher). Here only the bad row fails."""

from __future__ import annotations

import asyncio

from contract.routing import Breaker
from tests.dataplane.shadow.shades import shades

POISON = [666.0, 0.0, 0.0, 0.0]
PATIENT = Breaker(window=100, failures=100)


async def test_a_poison_row_fails_alone_among_its_neighbours():
    async with shades(shadow=None, breaker=PATIENT) as plane:
        rows = [[float(n), 0.0, 0.0, 0.0] for n in range(16)]
        rows[6] = POISON
        answers = await asyncio.gather(*(plane.ask(row) for row in rows))
    for n, answer in enumerate(answers):
        if n == 6:
            assert (answer.status, answer.json["code"]) == (500, "version_failed")
        else:
            assert answer.status == 200
            assert answer.json["outputs"][0]["data"] == [float(n)]
    # The rows shared batches, and one batch was sent again row by row.
    assert 16 / 4 < len(plane.live.requests) < 16


async def test_a_row_that_does_not_match_the_signature_joins_no_batch():
    async with shades(shadow=None) as plane:
        answers = await asyncio.gather(plane.ask([1.0, 2.0]), *(plane.ask() for _ in range(3)))
        assert [answer.status for answer in answers] == [400, 200, 200, 200]
        assert answers[0].json["code"] in ("wrong_data", "wrong_shape")
        assert len(plane.live.requests) == 1
