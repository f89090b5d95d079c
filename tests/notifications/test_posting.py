"""What a post will not do: reach forbidden machines, wait for ever, read without end."""

from __future__ import annotations

import contextlib
import socket
import threading
from time import monotonic, sleep
from typing import Any

import pytest

from apps.lib.errors import Unavailable
from apps.notifications.addresses import is_reachable, masked
from apps.notifications.posting import ANSWER_BYTES_MAX, post
from tests.notifications.receivers import Endpoint


@pytest.mark.parametrize(
    ("machine", "with_private", "without"),
    [
        ("93.184.215.14", True, True),
        ("2606:4700:4700::1111", True, True),
        ("127.0.0.1", True, False),
        ("::1", True, False),
        ("10.1.2.3", True, False),
        ("fd12::1", True, False),
        ("100.64.0.1", True, False),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("2002:a9fe:a9fe::", False, False),
        ("fe80::1%eth0", False, False),
        ("fd00:ec2::254", False, False),
        ("100.100.100.200", False, False),
        ("0.0.0.0", False, False),
        ("255.255.255.255", False, False),
        ("224.0.0.1", False, False),
    ],
)
def test_which_machines_are_reached(machine: str, with_private: bool, without: bool) -> None:
    assert is_reachable(machine, private_allowed=True) == with_private
    assert is_reachable(machine, private_allowed=False) == without


def test_a_name_that_leads_to_a_forbidden_machine_is_found_out_when_it_is_used(
    endpoint: Endpoint, settings: Any
) -> None:
    settings.WEBHOOK_PRIVATE_ALLOWED = False
    url = endpoint.url.replace("127.0.0.1", "localhost")

    with pytest.raises(Unavailable, match=r"localhost is .*where nothing is sent"):
        post(url, {}, b"")
    assert endpoint.received == []


@pytest.mark.parametrize("written", ["2852039166", "0xa9fea9fe", "169.254.43518"])
def test_other_ways_to_write_an_address_gain_nothing(written: str) -> None:
    with pytest.raises(Unavailable, match=r"169\.254\.169\.254, where nothing is sent"):
        post(f"http://{written}/", {}, b"")


def test_no_more_of_a_long_answer_is_read_than_the_limit(endpoint: Endpoint) -> None:
    endpoint.text = b"x" * 5_000_000
    assert post(endpoint.url, {}, b"{}").text == "x" * ANSWER_BYTES_MAX


@pytest.mark.parametrize("drip", [b"", b"H", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"])
def test_an_endpoint_that_drips_or_talks_nonsense_is_left_in_time(drip: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_drip, args=(server, drip))
        thread.start()
        started = monotonic()
        with pytest.raises(Unavailable, match="no answer"):
            post(f"http://127.0.0.1:{server.getsockname()[1]}/", {}, b"{}", timeout_s=0.5)
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
        post("http://nowhere.invalid/", {}, b"")


def test_what_may_be_a_secret_in_an_address_is_masked() -> None:
    assert masked("https://hooks.example/T0/secret?x=1") == "https://hooks.example/…"
    assert masked("ada@example.org") == "ada@example.org"
