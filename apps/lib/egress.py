"""Outgoing calls to addresses that a person or another service supplied, and the egress policy.

The host name is resolved once and the connection goes to an address that was checked, which defeats
DNS rebinding. Redirects are not followed, proxies are not used, and the whole exchange has one
deadline.
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

# Metadata services of clouds, which hand out credentials; the others are link-local.
METADATA = {ip_address(a) for a in ("100.100.100.200", "192.0.0.192", "fd00:ec2::254")}
NAT64 = tuple(ip_network(n) for n in ("64:ff9b::/96", "64:ff9b:1::/48"))
LOOPBACK = IPv4Address("127.0.0.1")
DEFAULT_PORTS = {"http": 80, "https": 443}
NEVER = "link-local, metadata, multicast and reserved addresses are never called"
NOT_LISTED = "it is neither public nor listed in INTERLOCK_WEBHOOK_ALLOWED"
# How long the resolved addresses of an own service are cached.
RESOLVED_FOR_S = 30.0


@dataclass(frozen=True)
class AllowList:
    """Private networks, and names of hosts in private networks, that may be called."""

    networks: tuple[Network, ...] = ()
    names: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, items: Iterable[str]) -> AllowList:
        """Parse networks (10.1.0.0/16), addresses and names. Raises ValueError on others."""
        networks: list[Network] = []
        names = set()
        for item in items:
            if "/" in item or _literal(item) is not None:
                networks.append(ip_network(item))
            elif all(c.isalnum() or c in "-._" for c in item):
                names.add(item.lower())
            else:
                raise ValueError(f"{item!r} is not a network, an address or a host name")
        return cls(tuple(networks), frozenset(names))

    def covers(self, host: str, machine: Machine) -> bool:
        return host.lower() in self.names or any(machine in network for network in self.networks)


@dataclass(frozen=True)
class OwnService:
    """A server of this installation, which the control plane never calls on behalf of a user."""

    # The name in messages.
    name: str
    host: str
    # None: every port of that host.
    port: int | None
    # On a host of its own it has further ports, which are unknown here.
    has_more_ports: bool = False
    # Behind a proxy that serves other sites at the same address: only the name identifies it.
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
    """Allows public addresses and the allow-list; always refuses own services."""

    allowed: AllowList = AllowList()
    own: tuple[OwnService, ...] = ()

    def refusal(self, host: str, machine: Machine, port: int) -> str:
        """Return why `machine`, an address of `host`, is refused at `port`; empty: allowed."""
        machine = _unwrapped(machine)
        if _is_never_called(machine):
            return NEVER
        if name := self._own_name(host, machine, port):
            return f"it is Interlock's own service {name}"
        if is_public(machine) or self.allowed.covers(host, machine):
            return ""
        return NOT_LISTED

    def refusal_as_written(self, host: str, port: int) -> str:
        """Return why `host` is refused, as far as known without a DNS lookup; else empty."""
        machine = _literal(host)
        if machine is not None:
            return self.refusal(host, machine, port)
        name = self._own_name(host, None, port)
        return f"it is Interlock's own service {name}" if name else ""

    def _own_name(self, host: str, machine: Machine | None, port: int) -> str:
        return next((own.name for own in self.own if own.is_at(host, machine, port)), "")


def is_public(machine: Machine) -> bool:
    """Return whether the address is global: not private, loopback or carrier-grade NAT."""
    is_site_local = isinstance(machine, IPv6Address) and machine.is_site_local
    return machine.is_global and not is_site_local


def _is_never_called(machine: Machine) -> bool:
    if machine in METADATA or machine.is_link_local or machine.is_multicast:
        return True
    return machine.is_unspecified or (machine.is_reserved and not machine.is_loopback)


def _unwrapped(machine: Machine) -> Machine:
    """Return the IPv4 address embedded in an IPv6 address, if any; else the address itself."""
    if isinstance(machine, IPv4Address):
        return machine
    if any(machine in network for network in NAT64):
        return IPv4Address(int(machine) & 0xFFFF_FFFF)
    return machine.ipv4_mapped or machine.sixtofour or machine


def _literal(host: str) -> Machine | None:
    """Return the address that `host` spells, in any notation that resolvers accept; else None."""
    text = host.partition("%")[0].rstrip(".")
    if text.lower() == "localhost" or text.lower().endswith(".localhost"):
        # RFC 6761: always this machine.
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
    """Return whether the address is this machine's; its services then differ by port."""
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
    """Return the addresses of an own service; the last known ones while its name is unresolved."""
    literal = _literal(host)
    if literal is not None:
        return frozenset({_unwrapped(literal)})
    at, machines = _known.get(host, (0.0, frozenset()))
    if at and monotonic() - at < RESOLVED_FOR_S:
        return machines
    # While the name cannot be resolved, nobody can call it by this name either.
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
    """Send one request and yield the response, whatever its status; the caller reads the body.

    `timeout_s` bounds the whole exchange, `idle_s` each single step.

    Raises:
        Unavailable: there was no response in time, or the policy refuses; the message says why.
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
    """Return a connection to the first allowed address of `host` that accepts it."""
    machines = _look_up(host, port)
    refusals = {machine: policy.refusal(host, machine, port) for machine in machines}
    callable_ = [machine for machine in machines if not refusals[machine]]
    if not callable_:
        addresses = ", ".join(map(str, machines))
        reasons = "; ".join(dict.fromkeys(refusals.values()))
        raise Unavailable(f"{host} resolves to {addresses}, where nothing is sent: {reasons}")
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
    """Return the seconds left for the next step. Raises TimeoutError when none are left."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return min(left, idle_s)


class _Readable(io.RawIOBase):
    """The stream that HTTPResponse reads: each read gets the time that is left of the exchange.

    A socket timeout alone would restart with each byte that a slow endpoint sends.
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
