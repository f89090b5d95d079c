"""Refuses addresses with a null character: no row has one, and PostgreSQL takes no such text."""

from __future__ import annotations

from collections.abc import Callable

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
