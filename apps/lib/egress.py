"""Calls to addresses that a person or a foreign service named: which machines they may reach.

The name is resolved once, and the connection goes to an address that was checked, so that a name
which changes its answer in between gains nothing. No redirect is followed, no proxy is used, and
the whole exchange has one deadline.
"""

from __future__ import annotations

import io
import math
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from apps.lib.errors import Unavailable

Machine = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Where clouds tell a machine its credentials, beside the link-local addresses.
METADATA = {ip_address(a) for a in ("100.100.100.200", "192.0.0.192", "fd00:ec2::254")}
NAT64 = tuple(ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48"))
LOOPBACK = IPv4Address("127.0.0.1")
DEFAULT_PORTS = {"http": 80, "https": 443}
NEVER = "link-local, metadata, multicast and reserved addresses are never called"
NOT_LISTED = "only public addresses are called, and those that INTERLOCK_WEBHOOK_ALLOWED lists"
# A name of an own service is resolved again after so long.
RESOLVED_FOR_S = 30.0


@dataclass(frozen=True)
class AllowList:
    """Private networks and names of machines in them that may be called all the same."""

    networks: tuple[Network, ...] = ()
    names: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, items: Iterable[str]) -> AllowList:
        """Read networks (10.1.0.0/16), addresses and names. Raises ValueError: none of them."""
        networks: list[Network] = []
        names = set()
        for item in items:
            if "/" in item or _literal(item) is not None:
                networks.append(ip_network(item))
            elif all(c.isalnum() or c in "-._" for c in item):
                names.add(item.lower())
            else:
                raise ValueError(f"{item!r} is neither a network, nor an address, nor a name")
        return cls(tuple(networks), frozenset(names))

    def covers(self, host: str, machine: Machine) -> bool:
        return host.lower() in self.names or any(machine in network for network in self.networks)


@dataclass(frozen=True)
class OwnService:
    """A server of this installation. Nobody may have the control plane call it on their behalf."""

    # What people call it.
    name: str
    host: str
    # None: every port of that machine.
    port: int | None
    # It has more ports than the one that we know, where it has a machine of its own.
    has_more_ports: bool = False
    # Reached through a proxy that serves others at the same address: only its name tells.
    by_name_only: bool = False

    def is_at(self, host: str, machine: Machine | None, port: int) -> bool:
        is_same_port = self.port in (None, port)
        if self.host.lower() == host.lower():
            return is_same_port or (self.has_more_ports and not _is_this_machine(self.host))
        if machine is None or self.by_name_only:
            return False
        machines = _resolved(self.host)
        if _is_local(machine) and any(_is_local(own) for own in machines):
            return is_same_port
        return machine in machines and (is_same_port or self.has_more_ports)


@dataclass(frozen=True)
class EgressPolicy:
    """What may be called: public machines, those of the allow-list, and never an own service."""

    allowed: AllowList = AllowList()
    own: tuple[OwnService, ...] = ()

    def refusal(self, host: str, machine: Machine, port: int) -> str:
        """Return why `machine`, an address of `host`, is not called at `port`; empty: it may be."""
        machine = _unwrapped(machine)
        if _is_never_called(machine):
            return NEVER
        if name := self._own_name(host, machine, port):
            return f"that is Interlock's own service {name}"
        if is_public(machine) or self.allowed.covers(host, machine):
            return ""
        return NOT_LISTED

    def refusal_as_written(self, host: str, port: int) -> str:
        """Return why nothing will ever be sent there, as far as `host` says without a look-up."""
        machine = _literal(host)
        if machine is not None:
            return self.refusal(host, machine, port)
        name = self._own_name(host, None, port)
        return f"that is Interlock's own service {name}" if name else ""

    def _own_name(self, host: str, machine: Machine | None, port: int) -> str:
        return next((own.name for own in self.own if own.is_at(host, machine, port)), "")


def is_public(machine: Machine) -> bool:
    """Say whether the internet routes to the address: not private, loopback or of a carrier."""
    is_site_local = isinstance(machine, IPv6Address) and machine.is_site_local
    return machine.is_global and not is_site_local


def _is_never_called(machine: Machine) -> bool:
    if machine in METADATA or machine.is_link_local or machine.is_multicast:
        return True
    return machine.is_unspecified or (machine.is_reserved and not machine.is_loopback)


def _unwrapped(machine: Machine) -> Machine:
    """Return the IPv4 address inside an IPv6 one that only carries it."""
    if isinstance(machine, IPv4Address):
        return machine
    if any(machine in network for network in NAT64):
        return IPv4Address(int(machine) & 0xFFFF_FFFF)
    return machine.ipv4_mapped or machine.sixtofour or machine


def _literal(host: str) -> Machine | None:
    """Return the address that `host` writes, in any of the ways that resolvers take; else None."""
    text = host.partition("%")[0].rstrip(".")
    if text.lower() == "localhost" or text.lower().endswith(".localhost"):
        # RFC 6761: this machine, whatever a resolver says.
        return LOOPBACK
    try:
        return ip_address(text)
    except ValueError:
        pass
    try:
        # 2130706433, 0x7f.1 and the like.
        return IPv4Address(socket.inet_aton(text)) if text.isascii() else None
    except OSError:
        return None


def _is_this_machine(host: str) -> bool:
    return any(_is_local(machine) for machine in _resolved(host))


def _is_local(machine: Machine) -> bool:
    """Say whether the address is one of this machine's: then the port tells services apart."""
    if machine.is_loopback or machine.is_unspecified:
        return True
    family = socket.AF_INET if isinstance(machine, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(machine), 0))
    except OSError:
        return False
    return True


_known: dict[str, tuple[float, frozenset[Machine]]] = {}


def _resolved(host: str) -> frozenset[Machine]:
    """Return the addresses of an own service; those that were known while its name has none."""
    literal = _literal(host)
    if literal is not None:
        return frozenset({_unwrapped(literal)})
    at, machines = _known.get(host, (0.0, frozenset()))
    if at and monotonic() - at < RESOLVED_FOR_S:
        return machines
    # A name that is not known now leads nobody there either.
    with suppress(OSError):
        machines = frozenset(_unwrapped(machine) for machine in _look_up(host, 0))
    _known[host] = monotonic(), machines
    return machines


def _look_up(host: str, port: int) -> list[Machine]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in answers)
    return [ip_address(text) for text in texts]


# --- the exchange --------------------------------------------------------------------------------


@contextmanager
def exchange(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    policy: EgressPolicy,
    timeout_s: float,
    idle_s: float = math.inf,
) -> Iterator[HTTPResponse]:
    """Send one request and give the answer, whatever its status; its body is read by the caller.

    `timeout_s` is for all of it, `idle_s` for each single step.

    Raises:
        Unavailable: there was no answer in time, or it may not be called; the message says why.
    """
    left = partial(_left, monotonic() + timeout_s, idle_s)
    parts = urlsplit(url)
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    try:
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        with _connect(parts.hostname or "", port, parts.scheme == "https", left, policy) as s:
            connection = HTTPConnection(parts.netloc.rpartition("@")[2])
            connection.sock = s
            s.settimeout(left())
            connection.request(method, path, body, {**headers, "Connection": "close"})
            response = HTTPResponse(_Readable(s, left), method=method)  # type: ignore[arg-type]
            response.begin()
            yield response
    except TimeoutError as error:
        raise Unavailable(f"no answer within {min(timeout_s, idle_s):g} s") from error
    except ssl.SSLError as error:
        raise Unavailable(f"TLS failed: {error}") from error
    except (OSError, HTTPException, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unavailable(f"no answer: {text}") from error


def _connect(
    host: str, port: int, is_tls: bool, left: Callable[[], float], policy: EgressPolicy
) -> socket.socket:
    """Return a connection to the first address of `host` that may be called and answers."""
    machines = _look_up(host, port)
    refusals = {machine: policy.refusal(host, machine, port) for machine in machines}
    callable_ = [machine for machine in machines if not refusals[machine]]
    if not callable_:
        addresses = ", ".join(map(str, machines))
        reasons = "; ".join(dict.fromkeys(refusals.values()))
        raise Unavailable(f"{host} is {addresses}, where nothing is sent: {reasons}")
    last: OSError = OSError("no address")
    for machine in callable_:
        try:
            sock = socket.create_connection((str(machine), port), timeout=left())
        except OSError as error:
            last = error
            continue
        return _secured(sock, host, left) if is_tls else sock
    raise last


def _secured(sock: socket.socket, host: str, left: Callable[[], float]) -> socket.socket:
    try:
        sock.settimeout(left())
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def _left(deadline: float, idle_s: float) -> float:
    """Return the seconds that the next step may take. Raises TimeoutError when there are none."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, idle_s)


class _Readable(io.RawIOBase):
    """What HTTPResponse reads from: every read gets only what is left of the exchange's time.

    A timeout of the socket alone would start anew with each byte that a slow endpoint lets go.
    """

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock = sock
        self._left = left

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._left())
        return self._sock.recv_into(buffer)
