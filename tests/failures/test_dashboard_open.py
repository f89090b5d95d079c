"""The rollout dashboard had no login (argo-rollouts #1323). Here every address needs one.

The test sends an unauthenticated request to every address in the URL configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

pytestmark = pytest.mark.django_db

# Login and password reset, health endpoints, and files of the admin's login page.
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
    text = re.sub(r"<(\w+):\w+>", lambda match: SAMPLES.get(match[1], "x"), text)
    text = re.sub(r"\(\?P<\w+>\[0-9a-fA-F-\]\{36\}\)", SAMPLES["uuid"], text)
    text = re.sub(r"\(\?P<format>[^)]*\)", "json", text)
    text = re.sub(r"\(\?P<\w+>(?:[^()]|\([^()]*\))*\)", "digits", text)
    return text.replace("\\.", ".").replace("/?", "").strip("^$").replace("\\Z", "")


def every_address() -> list[str]:
    urls = {address for address in addresses(get_resolver()) if "static" not in address}
    return sorted(address for address in urls if address not in OPEN and "(" not in address)


def test_the_list_of_addresses_is_complete() -> None:
    urls = every_address()
    assert len(urls) > 100
    assert {"rollouts/", "api/v1/rollouts/", "admin/", "api/schema/"} <= set(urls)


def test_every_address_refuses_an_unauthenticated_client() -> None:
    client = Client(raise_request_exception=False)
    answered = []
    for address in every_address():
        for method in ("get", "post"):
            response = getattr(client, method)(f"/{address}")
            is_login = response.status_code == 302 and "login" in response.headers["Location"]
            # Partial matches and other methods reveal nothing either.
            if not is_login and response.status_code not in {401, 403, 404, 405}:
                answered.append(f"{method} {address}: {response.status_code}")
    assert answered == []
