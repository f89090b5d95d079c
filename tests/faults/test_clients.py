"""Clients that reset or half-close their connection at any point do not affect others."""

from __future__ import annotations

import socket
import struct
from time import monotonic, sleep

import httpx

from tests.faults.ground import BODY, Ground, wait_until
from tests.faults.load import Load, failures, report

REQUEST = (
    b"POST /v2/models/flowers/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY)
) + BODY
# A close with this option sends RST and discards unread data.
RESET = struct.pack("ii", 1, 0)
ROUNDS = 200


def connect(ground: Ground) -> socket.socket:
    return socket.create_connection(("127.0.0.1", ground.port), timeout=5)


def reset_after(ground: Ground, data: bytes, pause_s: float) -> None:
    with connect(ground) as client:
        client.sendall(data)
        sleep(pause_s)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def half_close_after(ground: Ground, data: bytes) -> bytes:
    """Return all data that a half-closed client receives."""
    with connect(ground) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65_536), b""))


def metric(ground: Ground, name: str) -> float:
    """Return the sum of a gauge over its labels."""
    token = ground.stack.env["INTERLOCK_OPERATOR_TOKEN"]
    headers = {"authorization": f"Bearer {token}"}
    page = httpx.get(f"{ground.stack.urls.dataplane}/metrics", headers=headers).text
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


def test_clients_that_reset_their_connections_do_not_affect_others(ground: Ground) -> None:
    with Load(ground.port, ground.question) as load:
        began = monotonic()
        for round_number in range(ROUNDS):
            reset_after(ground, REQUEST, 0)
            reset_after(ground, REQUEST * 4, 0.002)
            reset_after(ground, REQUEST[: round_number + 1], 0)
        wait_until(lambda: load.is_well(began), 5, "the others are served")
    report(f"{3 * ROUNDS} connections reset", load, began)

    assert failures(load.answers) == {}
    wait_until(lambda: metric(ground, "interlock_queue_rows") == 0, 5, "no queue is jammed")
    wait_until(lambda: metric(ground, "interlock_batches_in_flight") == 0, 5, "no batch is stuck")


def test_half_closed_clients_get_all_their_responses(ground: Ground) -> None:
    with Load(ground.port, ground.question) as load:
        began = monotonic()
        whole = [half_close_after(ground, REQUEST * 3) for _ in range(ROUNDS)]
        cut = [half_close_after(ground, REQUEST[:-n]) for n in range(1, ROUNDS)]
        wait_until(lambda: load.is_well(began), 5, "the others are served")
    report(f"{2 * ROUNDS - 1} connections half-closed", load, began)

    assert [answer.count(b"HTTP/1.1 200 ") for answer in whole] == [3] * ROUNDS
    assert all(b" 200 " not in answer for answer in cut)
    assert failures(load.answers) == {}
