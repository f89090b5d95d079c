"""Bounds of a POST: forbidden addresses, time, size of the response."""

from __future__ import annotations

import contextlib
import socket
import threading
from time import monotonic, sleep

import pytest

from apps.lib.egress import AllowList, EgressPolicy
from apps.lib.errors import Unavailable
from apps.notifications.addresses import mask_address
from apps.notifications.http_post import ANSWER_BYTES_MAX, post
from tests.notifications.receivers import Endpoint

LOOPBACK = EgressPolicy(AllowList.parse(["127.0.0.0/8", "::1"]))


def test_a_name_that_resolves_to_a_forbidden_address_is_refused(
    endpoint: Endpoint,
) -> None:
    url = endpoint.url.replace("127.0.0.1", "localhost")

    with pytest.raises(Unavailable, match=r"localhost resolves to .*where nothing is sent"):
        post(url, {}, b"", policy=EgressPolicy())
    assert endpoint.received == []


def test_a_redirect_is_returned_and_not_followed(endpoint: Endpoint) -> None:
    endpoint.status, endpoint.extra = 307, {"Location": f"{endpoint.url}/further"}

    assert post(endpoint.url, {}, b"{}", policy=LOOPBACK).status == 307
    assert [received.path for received in endpoint.received] == ["/hook"]


def test_the_checked_address_is_called_with_the_host_name_of_the_url(endpoint: Endpoint) -> None:
    post(endpoint.url.replace("127.0.0.1", "localhost"), {}, b"{}", policy=LOOPBACK)

    assert endpoint.received[0].headers["host"] == f"localhost:{endpoint.port}"


@pytest.mark.parametrize("written", ["2852039166", "0xa9fea9fe", "169.254.43518"])
def test_other_notations_of_an_address_are_refused_as_well(written: str) -> None:
    with pytest.raises(Unavailable, match=r"169\.254\.169\.254, where nothing is sent"):
        post(f"http://{written}/", {}, b"", policy=LOOPBACK)


def test_a_long_response_is_read_up_to_the_limit(endpoint: Endpoint) -> None:
    endpoint.text = b"x" * 5_000_000
    assert post(endpoint.url, {}, b"{}", policy=LOOPBACK).text == "x" * ANSWER_BYTES_MAX


@pytest.mark.parametrize("drip", [b"", b"H", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"])
def test_a_slow_or_malformed_response_ends_in_time(drip: bytes) -> None:
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
    """Send one byte at a time until the client closes the connection."""
    peer, _ = server.accept()
    with peer, contextlib.suppress(OSError):
        peer.sendall(text)
        for _ in range(20):
            sleep(0.1)
            peer.sendall(b"x" if text else b"")


def test_an_unknown_name_is_reported() -> None:
    with pytest.raises(Unavailable, match="no answer: "):
        post("http://nowhere.invalid/", {}, b"", policy=LOOPBACK)


def test_the_path_of_a_url_is_masked() -> None:
    assert mask_address("https://hooks.example/T0/secret?x=1") == "https://hooks.example/…"
    assert mask_address("ada@example.org") == "ada@example.org"
