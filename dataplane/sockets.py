"""The listening sockets of an instance: one for each worker, all on one port.

They are bound at once, so that the port is ours, and listen only while a worker serves them: a
client that nobody could answer is refused at once and may go elsewhere. The first worker that
accepts makes a socket listen.
"""

from __future__ import annotations

import socket

# By port, held for as long as the process lives; the kernel frees them with any death.
_claims: dict[tuple[str, int], socket.socket] = {}


def claim(host: str, port: int) -> None:
    """Claim the port for this process. Raises OSError where another instance has it.

    The kernel lets two bind a port, or share it, until one of them listens.
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
    """Return `count` sockets bound to one port. Raises OSError where the port is taken."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if count > 1 and port:
        # Sockets that share a port would share it with a stranger's, too, and silently.
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
    """Stop listening, in all processes that hold the sockets; what waits in their queues is reset.

    They stay bound, and listen again as soon as a worker accepts on them.
    """
    for item in sockets:
        # One that does not listen would hand on its being shut to every connection after.
        if item.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            item.shutdown(socket.SHUT_RDWR)


def close_all(sockets: list[socket.socket]) -> None:
    for item in sockets:
        item.close()
