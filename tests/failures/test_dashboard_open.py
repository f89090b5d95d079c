"""The rollout dashboard had no login (argo-rollouts #1323): here everything needs one.

Each address of the whole site is asked by a stranger, also those that are added tomorrow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

pytestmark = pytest.mark.django_db

# Who signs in or has forgotten the password, whether process and loops live, and what the admin's own
# login page loads.
OPEN = {
    "login/",
    "password/reset/",
    "password/reset/sent/",
    "password/reset/digits/digits/",
    "healthz/live",
    "healthz/ready",
    "healthz/loops",
    "favicon.ico",
    "admin/login/",
    "admin/jsi18n/",
}
SAMPLES = {
    "int": "1",
    "uuid": "00000000-0000-4000-8000-000000000001",
    "str": "digits",
    "slug": "digits",
    "path": "x",
}


def addresses(resolver: URLResolver, before: str = "") -> Iterator[str]:
    for entry in resolver.url_patterns:
        pattern = before + _sample(entry)
        if isinstance(entry, URLResolver):
            yield from addresses(entry, pattern)
        else:
            yield pattern


def _sample(entry: URLPattern | URLResolver) -> str:
    """Return a path that the pattern matches, near enough to reach its view."""
    text = str(entry.pattern)
    text = re.sub(r"<(\w+):\w+>", lambda found: SAMPLES.get(found[1], "x"), text)
    text = re.sub(r"\(\?P<\w+>\[0-9a-fA-F-\]\{36\}\)", SAMPLES["uuid"], text)
    text = re.sub(r"\(\?P<format>[^)]*\)", "json", text)
    text = re.sub(r"\(\?P<\w+>(?:[^()]|\([^()]*\))*\)", "digits", text)
    return text.replace("\\.", ".").replace("/?", "").strip("^$").replace("\\Z", "")


def every_address() -> list[str]:
    found = {address for address in addresses(get_resolver()) if "static" not in address}
    return sorted(address for address in found if address not in OPEN and "(" not in address)


def test_the_walk_finds_the_site() -> None:
    found = every_address()
    assert len(found) > 100
    assert {"rollouts/", "api/v1/rollouts/", "admin/", "api/schema/"} <= set(found)


def test_no_address_says_anything_to_a_stranger() -> None:
    client = Client(raise_request_exception=False)
    told = []
    for address in every_address():
        for method in ("get", "post"):
            response = getattr(client, method)(f"/{address}")
            is_login = response.status_code == 302 and "login" in response.headers["Location"]
            # An address that only matches in part, or takes another method, tells nothing either.
            if not is_login and response.status_code not in {401, 403, 404, 405}:
                told.append(f"{method} {address}: {response.status_code}")
    assert told == []
