"""Where notifications may go: which addresses are accepted, and which machines are never reached.

A name is looked up again for each delivery, so `is_reachable` is asked of the machine that the
connection then goes to, and a name that changes its mind after it was accepted gains nothing.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from apps.lib.errors import Invalid

Machine = IPv4Address | IPv6Address
ADDRESS_LENGTH_MAX = 1_000
# Where clouds tell a machine its credentials, beside the link-local addresses.
METADATA = {ip_address(a) for a in ("100.100.100.200", "192.0.0.192", "fd00:ec2::254")}
NAT64 = ip_network("64:ff9b::/96")


def is_reachable(text: str, *, private_allowed: bool) -> bool:
    """Say whether a delivery may connect to the machine `text`, an IPv4 or IPv6 address."""
    machine = _unwrapped(ip_address(text.partition("%")[0]))
    if machine in METADATA or machine.is_link_local or machine.is_multicast:
        return False
    if machine.is_unspecified or (machine.is_reserved and not machine.is_loopback):
        return False
    return private_allowed or machine.is_global


def _unwrapped(machine: Machine) -> Machine:
    """Return the IPv4 address inside an IPv6 one that only carries it."""
    if isinstance(machine, IPv4Address):
        return machine
    if machine in NAT64:
        return IPv4Address(int(machine) & 0xFFFF_FFFF)
    return machine.ipv4_mapped or machine.sixtofour or machine


def check_email(address: str) -> None:
    """Raises Invalid: the address is not one of e-mail."""
    try:
        validate_email(address)
    except ValidationError as error:
        raise Invalid(f"address: {address!r} is not an e-mail address.") from error


def check_url(address: str, *, private_allowed: bool) -> None:
    """Hold a URL to what a delivery can use.

    Raises:
        Invalid: the message says which part is wrong.
    """
    if len(address) > ADDRESS_LENGTH_MAX:
        raise Invalid(f"address: a URL has at most {ADDRESS_LENGTH_MAX} characters.")
    if not address.isascii() or not address.isprintable() or " " in address:
        raise Invalid("address: a URL has no spaces or special characters; escape them with %.")
    try:
        url = urlsplit(address)
        host, port = url.hostname or "", url.port
    except ValueError as error:
        raise Invalid(f"address: {address!r} is not a URL: {error}.") from error
    if url.scheme not in {"http", "https"}:
        raise Invalid("address: a URL starts with https:// or http://.")
    if not host or port == 0:
        raise Invalid(f"address: {address!r} names no host, or port 0.")
    if url.username is not None or url.password is not None:
        raise Invalid("address: a URL holds no user or password; webhooks are signed instead.")
    if url.fragment:
        raise Invalid("address: a URL's part after # is never sent; leave it out.")
    _check_literal(host, private_allowed)


def _check_literal(host: str, private_allowed: bool) -> None:
    try:
        allowed = is_reachable(host, private_allowed=private_allowed)
    except ValueError:
        # A name: it is looked up, and held to the same rule, when something is sent.
        return
    if not allowed:
        raise Invalid(f"address: nothing is sent to {host}; {why_refused(private_allowed)}.")


def why_refused(private_allowed: bool) -> str:
    if private_allowed:
        return "link-local, metadata, multicast and reserved addresses are refused"
    return "only public addresses are allowed (INTERLOCK_WEBHOOK_PRIVATE_ALLOWED is 0)"


def masked(address: str) -> str:
    """Return a URL without its path, which often is a secret; an e-mail address as it is."""
    if "://" not in address:
        return address
    url = urlsplit(address)
    return f"{url.scheme}://{url.netloc}/…"
