"""Where a request comes from, and the refusal of addresses (paths) with a null character: no row
has one, and PostgreSQL takes no such text.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase, JsonResponse

TOLD = "The address contains a null character."


class NullMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if "\0" in request.path or "%00" in request.META.get("QUERY_STRING", ""):
            body = {"error": {"code": "invalid", "message": TOLD, "detail": {}}}
            return JsonResponse(body, status=400)
        return self.get_response(request)


class ClientAddressMiddleware:
    """Makes REMOTE_ADDR the client's where proxies of ours stand between.

    Each of `INTERLOCK_PROXIES` proxies appends whom it heard to X-Forwarded-For, so that as many
    entries from its end are true, and whatever a client wrote before them is not looked at.
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
    """Return the address that a request comes from."""
    return str(request.META.get("REMOTE_ADDR", ""))
