"""Liveness, readiness and metrics; they answer without MLflow, Redis and Triton too."""

from __future__ import annotations

import redis
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from drf_spectacular.utils import extend_schema
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from rest_framework.decorators import api_view
from rest_framework.request import Request

from apps.experiments.backlog import read_backlog


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


@extend_schema(exclude=True)
@api_view(["GET"])
def metrics(request: Request) -> HttpResponse:
    """Tell Prometheus what waits in the streams to be taken in; it brings an API token."""
    registry = CollectorRegistry()
    readable = Gauge(
        "interlock_streams_readable", "Whether Redis says what waits.", registry=registry
    )
    try:
        backlog = read_backlog()
    except redis.RedisError:
        readable.set(0)
        return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
    readable.set(1)
    of_stream = {
        "entries": "Entries that are not applied yet.",
        "pending_entries": "Of those, the ones that a consumer has read.",
        "oldest_seconds": "Age of the oldest entry that is not applied yet.",
    }
    for name, text in of_stream.items():
        gauge = Gauge(f"interlock_stream_{name}", text, ["stream"], registry=registry)
        for stream, found in backlog.streams.items():
            values = (found.entries, found.pending, found.oldest_s)
            gauge.labels(stream).set(dict(zip(of_stream, values, strict=True))[name])
    dead = "Entries that can never be applied, kept in interlock:dead."
    Gauge("interlock_dead_entries", dead, registry=registry).set(backlog.dead)
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
