"""All API errors have one format."""

from __future__ import annotations

from typing import Any

import pytest
from rest_framework import exceptions

from apps.lib.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from controlplane.errors import exception_handler


def handled(error: Exception) -> tuple[int, dict[str, Any]]:
    response = exception_handler(error, {})
    assert response is not None
    assert set(response.data) == {"error"}
    return response.status_code, response.data["error"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Invalid("no"), 400, "invalid"),
        (Forbidden("no"), 403, "forbidden"),
        (NotFound("no"), 404, "not_found"),
        (Conflict("no"), 409, "conflict"),
        (Unavailable("no"), 503, "unavailable"),
    ],
)
def test_interlock_errors_have_their_status_and_code(
    error: Exception, status: int, code: str
) -> None:
    assert handled(error) == (status, {"code": code, "message": "no", "detail": {}})


def test_an_error_includes_its_detail() -> None:
    assert handled(Conflict("moved", revision=4))[1]["detail"] == {"revision": 4}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ["is missing"]}, "name: is missing"),
        ({"steps": [{}, {"weight_bp": ["too much"]}]}, "steps[1].weight_bp: too much"),
        ({"non_field_errors": ["contradict"]}, "contradict"),
        (["bad"], "bad"),
    ],
)
def test_a_validation_error_names_the_field(fields: Any, message: str) -> None:
    status, body = handled(exceptions.ValidationError(fields))
    assert (status, body["code"], body["message"]) == (400, "invalid", message)


def test_framework_errors_have_the_same_format() -> None:
    status, body = handled(exceptions.MethodNotAllowed("PUT"))
    assert (status, body["code"]) == (405, "method_not_allowed")


def test_an_unexpected_error_is_not_handled() -> None:
    assert exception_handler(RuntimeError("a fault"), {}) is None
