"""What a post will not do: reach forbidden machines, wait for ever, read without end."""

from __future__ import annotations

import contextlib
import socket
import threading
from time import monotonic, sleep

import pytest

from apps.lib.egress import AllowList, EgressPolicy
from apps.lib.errors import Unavailable
from apps.notifications.addresses import masked
from apps.notifications.http_post import ANSWER_BYTES_MAX, post
from tests.notifications.receivers import Endpoint

LOOPBACK = EgressPolicy(AllowList.parse(["127.0.0.0/8", "::1"]))


def test_a_name_that_leads_to_a_forbidden_machine_is_detected_when_it_is_used(
    endpoint: Endpoint,
) -> None:
    url = endpoint.url.replace("127.0.0.1", "localhost")

    with pytest.raises(Unavailable, match=r"localhost resolves to .*where nothing is sent"):
        post(url, {}, b"", policy=EgressPolicy())
    assert endpoint.received == []


def test_a_redirect_is_an_answer_and_is_not_followed(endpoint: Endpoint) -> None:
    endpoint.status, endpoint.extra = 307, {"Location": f"{endpoint.url}/further"}

    assert post(endpoint.url, {}, b"{}", policy=LOOPBACK).status == 307
    assert [received.path for received in endpoint.received] == ["/hook"]


def test_the_checked_address_is_called_under_the_name_that_was_given(endpoint: Endpoint) -> None:
    post(endpoint.url.replace("127.0.0.1", "localhost"), {}, b"{}", policy=LOOPBACK)

    assert endpoint.received[0].headers["host"] == f"localhost:{endpoint.port}"


@pytest.mark.parametrize("written", ["2852039166", "0xa9fea9fe", "169.254.43518"])
def test_other_ways_to_write_an_address_gain_nothing(written: str) -> None:
    with pytest.raises(Unavailable, match=r"169\.254\.169\.254, where nothing is sent"):
        post(f"http://{written}/", {}, b"", policy=LOOPBACK)


def test_no_more_of_a_long_answer_is_read_than_the_limit(endpoint: Endpoint) -> None:
    endpoint.text = b"x" * 5_000_000
    assert post(endpoint.url, {}, b"{}", policy=LOOPBACK).text == "x" * ANSWER_BYTES_MAX


@pytest.mark.parametrize("drip", [b"", b"H", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"])
def test_an_endpoint_that_drips_or_talks_nonsense_is_left_in_time(drip: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_drip, args=(server, drip))
        thread.start()
        started = monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(Unavailable, match="no answer"):
            post(url, {}, b"{}", policy=LOOPBACK, timeout_s=0.5)
        assert monotonic() - started < 1.5
        thread.join()


def _drip(server: socket.socket, text: bytes) -> None:
    """Let go a byte now and then until the other side has had enough."""
    peer, _ = server.accept()
    with peer, contextlib.suppress(OSError):
        peer.sendall(text)
        for _ in range(20):
            sleep(0.1)
            peer.sendall(b"x" if text else b"")


def test_a_name_that_nobody_knows_is_told() -> None:
    with pytest.raises(Unavailable, match="no answer: "):
        post("http://nowhere.invalid/", {}, b"", policy=LOOPBACK)


def test_what_may_be_a_secret_in_an_address_is_masked() -> None:
    assert masked("https://hooks.example/T0/secret?x=1") == "https://hooks.example/…"
    assert masked("ada@example.org") == "ada@example.org"
