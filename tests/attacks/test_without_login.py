"""No page and no endpoint does or shows anything without a login, except those named here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.generators import SchemaGenerator

pytestmark = pytest.mark.django_db

METHODS = ("get", "post", "put", "patch", "delete")
# Health checks, and logging in.
OPEN_PAGES = {
    "live", "ready", "loops", "login", "password-reset", "password-reset-sent",
    "password-reset-confirm",
}  # fmt: skip
# Its sender proves itself by an HMAC; see tests/models/test_hints.py.
OPEN_API = {"/api/v1/registry-webhooks/mlflow"}
UUID = "00000000-0000-0000-0000-000000000000"
VALUES = {"uuid": UUID, "int": "1", "str": "x", "slug": "x", "path": "x"}


def operations() -> Iterator[tuple[str, str]]:
    schema: Any = SchemaGenerator().get_schema(request=None, public=True)
    for path, methods in schema["paths"].items():
        for method in methods:
            if method in METHODS and path not in OPEN_API:
                yield method, path


def test_each_endpoint_of_the_api_needs_a_login() -> None:
    endpoints = list(operations())
    assert len(endpoints) > 100
    admitted = {}
    for method, path in endpoints:
        # Some paths take a number, some a UUID: with the other kind there is no such URL.
        statuses = {
            Client().generic(method.upper(), filled, b"{}", "application/json").status_code
            for filled in (
                re.sub(r"{[^}]*}", "1", re.sub("{id}", value, path)) for value in ("1", UUID)
            )
        }
        if 401 not in statuses or not statuses <= {401, 404}:
            admitted[method, path] = statuses
    assert admitted == {}


def pages(patterns: list[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and paths of all URLs except those of the API and the admin."""
    for each in patterns:
        path = prefix + str(each.pattern)
        if path.startswith(("api/v1", "admin/")):
            continue
        if isinstance(each, URLResolver):
            yield from pages(each.url_patterns, path)
        elif isinstance(each, URLPattern):
            filled = re.sub(r"<(?:(\w+):)?\w+>", lambda m: VALUES[m[1] or "str"], path)
            yield each.name or "", f"/{filled}"


def test_each_page_leads_to_the_login() -> None:
    urls = [(name, path) for name, path in pages(get_resolver().url_patterns)]
    assert len(urls) > 60
    open_pages = {}
    for name, path in urls:
        for method in ("GET", "POST"):
            response = Client().generic(method, path)
            redirects = response.status_code == 302 and "/login/" in response.headers["Location"]
            if not redirects and response.status_code not in {401, 403, 405}:
                open_pages.setdefault(name, response.status_code)
    assert open_pages.keys() <= OPEN_PAGES, open_pages
