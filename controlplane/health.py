"""Liveness and readiness. Neither depends on MLflow, Redis or Triton: those may be away."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse


@login_not_required
def live(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"live": True})


@login_not_required
def ready(request: HttpRequest) -> JsonResponse:
    """Say whether requests can be answered: the database does."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return JsonResponse({"ready": False, "reason": f"database: {error}"}, status=503)
    return JsonResponse({"ready": True})
