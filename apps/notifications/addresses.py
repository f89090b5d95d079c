"""Validation of the addresses of notifications and webhook checks.

The resolved address is checked again whenever something is sent (`apps.lib.egress`).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from apps.lib.egress import DEFAULT_PORTS, EgressPolicy
from apps.lib.errors import Invalid

ADDRESS_LENGTH_MAX = 1_000


def check_email(address: str) -> None:
    """Raise Invalid unless `address` is an e-mail address."""
    try:
        validate_email(address)
    except ValidationError as error:
        raise Invalid(f"{address!r} is not an e-mail address.", field="address") from error


def check_url(address: str, *, policy: EgressPolicy) -> None:
    """Check that a delivery can use the URL.

    Raises:
        Invalid: the message names the wrong part.
    """
    if len(address) > ADDRESS_LENGTH_MAX:
        raise Invalid(f"a URL has at most {ADDRESS_LENGTH_MAX} characters.", field="address")
    if not address.isascii() or not address.isprintable() or " " in address:
        raise Invalid(
            "a URL has no spaces or special characters; escape them with %.", field="address"
        )
    try:
        url = urlsplit(address)
        host, port = url.hostname or "", url.port
    except ValueError as error:
        raise Invalid(f"{address!r} is not a URL: {error}.", field="address") from error
    if url.scheme not in {"http", "https"}:
        raise Invalid("a URL starts with https:// or http://.", field="address")
    if not host or port == 0:
        raise Invalid(f"{address!r} has no host, or has port 0.", field="address")
    if url.username is not None or url.password is not None:
        raise Invalid(
            "a URL has no user or password; webhooks are signed instead.", field="address"
        )
    if url.fragment:
        raise Invalid("remove the part of the URL after #; it is never sent.", field="address")
    if reason := policy.refusal_as_written(host, port or DEFAULT_PORTS[url.scheme]):
        raise Invalid(f"nothing is sent to {host}; {reason}.", field="address")


def mask_address(address: str) -> str:
    """Return a URL without its path, which may be secret; an e-mail address unchanged."""
    if "://" not in address:
        return address
    url = urlsplit(address)
    return f"{url.scheme}://{url.netloc}/…"
