"""Middlewares that determine the client's address and refuse URLs with a null character.

PostgreSQL does not accept text with a null character, so no row can match such a URL.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase, JsonResponse

NULL_CHARACTER = "The URL contains a null character."


class NullMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if "\0" in request.path or "%00" in request.META.get("QUERY_STRING", ""):
            body = {"error": {"code": "invalid", "message": NULL_CHARACTER, "detail": {}}}
            return JsonResponse(body, status=400)
        return self.get_response(request)


class ClientAddressMiddleware:
    """Sets REMOTE_ADDR to the client's address behind trusted proxies.

    Each of the `INTERLOCK_PROXIES` proxies appends its peer's address to X-Forwarded-For. Only
    that number of entries at the end can be trusted: a client can send any entries before them.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if settings.PROXIES:
            forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
            address = (
                forwarded[-settings.PROXIES].strip() if len(forwarded) >= settings.PROXIES else ""
            )
            if _is_address(address):
                request.META["REMOTE_ADDR"] = address
        return self.get_response(request)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def client_address(request: HttpRequest) -> str:
    """Return the address of the client that sent the request."""
    return str(request.META.get("REMOTE_ADDR", ""))
