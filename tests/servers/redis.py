"""Redis servers for tests: plain, with Sentinel, as a cluster, and behind a TLS proxy."""

from __future__ import annotations

import os
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from embedded.valkey import find_server
from tests.servers.certificates import Files

WITHIN_S = 20.0
# Sentinel considers a server dead after this time.
DEAD_MS = 500


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
    """Wait until the condition holds; connection errors count as no."""
    end = time.monotonic() + within_s
    while True:
        with suppress(redis.RedisError, OSError):
            if condition():
                return
        assert time.monotonic() < end, "the condition did not hold in time"
        time.sleep(0.05)


@contextmanager
def server(directory: Path, *options: str, port: int = 0) -> Iterator[int]:
    """Run a server in its own directory; yield its port."""
    port = port or free_port()
    directory.mkdir(exist_ok=True)
    command = [
        str(find_server(os.environ)), "--bind", "127.0.0.1", "--port", str(port),
        "--dir", str(directory), "--save", "", "--repl-diskless-sync-delay", "0", *options,
    ]  # fmt: skip
    with run(command), client(port) as probe:
        wait_until(probe.ping)
        yield port


@contextmanager
def sentinel(directory: Path, primary: int, service: str = "interlock") -> Iterator[int]:
    """Run a sentinel with a quorum of one; yield its port."""
    port = free_port()
    directory.mkdir(exist_ok=True)
    (directory / "sentinel.conf").write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor {service} 127.0.0.1 {primary} 1\n"
        f"sentinel down-after-milliseconds {service} {DEAD_MS}\n"
        f"sentinel failover-timeout {service} 3000\n"
    )
    command = [str(find_server(os.environ)), str(directory / "sentinel.conf"), "--sentinel"]
    with run(command), client(port) as probe:
        # Wait until it knows the replica, which has to take over.
        wait_until(lambda: len(probe.sentinel_slaves(service)) == 1)
        yield port


@contextmanager
def run(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def client(port: int) -> redis.Redis[bytes]:
    return redis.Redis(port=port, socket_timeout=2.0)


@contextmanager
def tls_front(files: Files, port: int) -> Iterator[int]:
    """Run a TLS proxy in front of a server, like stunnel; yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def accept() -> None:
        listener.settimeout(0.1)
        while not stop.is_set():
            with suppress(TimeoutError):
                raw, _ = listener.accept()
                threading.Thread(target=carry, args=(raw,), daemon=True).start()

    def carry(raw: socket.socket) -> None:
        raw.settimeout(5.0)
        with (
            suppress(OSError),
            context.wrap_socket(raw, server_side=True) as outside,
            socket.create_connection(("127.0.0.1", port)) as inside,
        ):
            pump(outside, inside, stop)
        raw.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        stop.set()
        thread.join()
        listener.close()


def pump(outside: ssl.SSLSocket, inside: socket.socket, stop: threading.Event) -> None:
    """Forward bytes in both directions until either side closes."""
    while not stop.is_set():
        ready = [outside] if outside.pending() else select.select([outside, inside], [], [], 0.1)[0]
        for source in ready:
            data = source.recv(65_536)
            if not data:
                return
            (inside if source is outside else outside).sendall(data)
