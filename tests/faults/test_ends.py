"""Every request is counted with exactly one end, despite a hanging Triton and impatient clients."""

from __future__ import annotations

import http.client
import random
from time import monotonic, sleep

from tests.faults.ground import BODY, Ground, wait_until
from tests.faults.load import Answer, Load, Steady
from tests.faults.seed import MODEL

SUMS = (
    "SELECT coalesce(sum(assigned_requests), 0), "
    "coalesce(sum((SELECT sum(value::int) FROM jsonb_each_text(ends))), 0), "
    "coalesce(sum((ends->>'expired')::int), 0), coalesce(sum((ends->>'abandoned')::int), 0) "
    "FROM rollouts_telemetryrow WHERE model_name = %s AND ended_at > %s "
    # Other instances had wrong clocks.
    "AND starts_with(instance, 'local')"
)


class Impatient(Steady):
    """Clients with a short timeout; half of them close the connection before the response."""

    def _ask(self, connection: http.client.HTTPConnection, at: float) -> Answer:
        headers = {"x-unit-id": f"u{random.randrange(100)}", "x-interlock-timeout-ms": "150"}
        connection.request("POST", f"/v2/models/{MODEL}/infer", BODY, headers)
        if random.random() < 0.5:
            sleep(0.02)
            connection.close()
            return Answer(at, monotonic() - at, 200)
        response = connection.getresponse()
        response.read()
        return Answer(at, monotonic() - at, response.status)


def test_every_assigned_request_has_one_end(ground: Ground) -> None:
    ground.settled_count()
    ((began_at,),) = ground.rows("SELECT now()")
    with (
        Load(ground.port, ground.question, per_s=100, threads=16) as load,
        Impatient(ground.port, per_s=60, threads=12) as impatient,
    ):
        sleep(0.5)
        with ground.stopped("triton"):
            sleep(2.0)
        continued_at = monotonic()
        wait_until(lambda: load.is_well(continued_at), 30, "all requests succeed again")
    sent = len(load.answers) + len(impatient.answers)

    def sums() -> tuple[int, int, int, int]:
        assigned, ended, expired, abandoned = ground.rows(SUMS, MODEL, began_at)[0]
        return int(assigned), int(ended), int(expired), int(abandoned)

    wait_until(lambda: sums()[0] == sums()[1] >= sent * 0.99, 40, "all have ended")
    ground.settled_count()
    assigned, ended, expired, abandoned = sums()
    assert assigned == ended
    assert assigned <= sent
    assert expired > 0
    assert abandoned > 0
