"""The format of every API error: `{"error": {"code", "message", "detail"}}`."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import RequestDataTooBig
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import exception_handler as drf_exception_handler

from apps.lib.errors import InterlockError


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Convert Interlock's and the framework's errors; return None, for a 500, for all others."""
    if isinstance(error, InterlockError):
        return _response(error.status, error.code, error.message, error.detail)
    if isinstance(error, RequestDataTooBig):
        return _response(413, "too_large", f"The request body is too large: {error}", {})
    if isinstance(error, RecursionError):
        return _response(400, "invalid", "Lists and objects are nested too deeply.", {})
    response = drf_exception_handler(error, context)
    if response is None:
        return None
    if isinstance(error, exceptions.ValidationError):
        body = _body("invalid", _first_message(response.data), {"fields": response.data})
    else:
        detail = response.data.get("detail", "") if isinstance(response.data, dict) else ""
        body = _body(getattr(detail, "code", None) or "error", str(detail), {})
    response.data = body
    return response


def _response(status: int, code: str, message: str, detail: dict[str, Any]) -> Response:
    return Response(_body(code, message, detail), status=status)


def _body(code: str, message: str, detail: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "detail": detail}}


def _first_message(data: Any, path: str = "") -> str:
    """Return the first problem of a nested validation error as `field: problem`."""
    if isinstance(data, dict) and data:
        key, value = next(iter(data.items()))
        return _first_message(value, f"{path}.{key}" if path else str(key))
    if isinstance(data, list) and data:
        position, value = next(((i, item) for i, item in enumerate(data) if item), (0, data[0]))
        inner = f"{path}[{position}]" if isinstance(value, dict) else path
        return _first_message(value, inner)
    where = path.removesuffix(".non_field_errors")
    return f"{where}: {data}" if where and where != "non_field_errors" else str(data)
