"""The listening sockets of an instance: one for each worker, all on one port.

They are bound at the start, so that the port is reserved, and listen only while a worker serves
them: a client that no worker can answer is refused at once and can try another instance. The first
worker that accepts makes a socket listen.
"""

from __future__ import annotations

import socket

# By address and port, held while the process lives; the kernel releases them when it dies.
_claims: dict[tuple[str, int], socket.socket] = {}


def claim(host: str, port: int) -> None:
    """Claim the port for this process. Raises OSError if another instance has it.

    The kernel lets two processes bind or share a port until one of them listens.
    """
    if port == 0 or (host, port) in _claims:
        return
    item = socket.socket(socket.AF_UNIX)
    try:
        item.bind(f"\0interlock:{host}:{port}")
    except OSError:
        item.close()
        raise
    _claims[host, port] = item


def bind(host: str, port: int, count: int) -> list[socket.socket]:
    """Return `count` sockets bound to one port. Raises OSError if the port is in use."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if count > 1 and port:
        # Sockets with SO_REUSEPORT would silently share the port with a foreign process, too.
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            item = socket.socket(family)
            sockets.append(item)
            item.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if count > 1:
                item.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            item.bind(sockets[0].getsockname() if len(sockets) > 1 else address)
    except OSError:
        close_all(sockets)
        raise
    return sockets


def refuse(sockets: list[socket.socket]) -> None:
    """Stop listening, in all processes that hold the sockets; queued connections are reset.

    The sockets stay bound, and listen again as soon as a worker accepts on them.
    """
    for item in sockets:
        # Shutting down a socket that does not listen would break later connections.
        if item.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            item.shutdown(socket.SHUT_RDWR)


def close_all(sockets: list[socket.socket]) -> None:
    for item in sockets:
        item.close()
