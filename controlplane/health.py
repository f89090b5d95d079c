"""Liveness, readiness, status of the loops and metrics.

All of them respond while MLflow, Redis or Triton is unreachable.
"""

from __future__ import annotations

from typing import Any

import redis
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils.functional import SimpleLazyObject
from django.views.decorators.http import require_safe
from drf_spectacular.utils import extend_schema
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
)
from rest_framework import serializers
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.experiments.backlog import read_backlog
from apps.experiments.selectors.refusals import refusals_by_reason
from apps.identity.models import Refusal
from apps.identity.refusals import recent_refusals
from apps.identity.service_checks import open_services, recent_checks
from apps.lib.clock import database_now
from controlplane.loop_health import Pulses, published_age_s, read_pulses
from controlplane.models import RetentionRun
from controlplane.retention.selectors import summary


class LoopSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    turned_by = serializers.CharField(help_text="The task or process that runs it.")
    age_s = serializers.FloatField(
        allow_null=True, help_text="Seconds since the last successful turn; null: none yet."
    )
    late_after_s = serializers.FloatField()
    is_late = serializers.BooleanField()
    without_it = serializers.CharField(help_text="The effect while the loop is stopped.")


class OpenServiceSerializer(serializers.Serializer[Any]):
    kind = serializers.CharField()
    address = serializers.CharField()
    cluster = serializers.CharField(help_text="The cluster of a Triton server, else empty.")
    danger = serializers.CharField(help_text="What an unauthenticated client can do.")


class RefusalSerializer(serializers.ModelSerializer[Refusal]):
    why = serializers.CharField(source="get_reason_display", read_only=True)

    class Meta:
        model = Refusal
        fields = ["instance", "channel", "reason", "why", "count", "first_at", "last_at"]
        read_only_fields = fields


class StatusSerializer(serializers.Serializer[Any]):
    is_well = serializers.BooleanField()
    trouble = serializers.CharField(help_text="Why the state of the loops is unknown, else empty.")
    published_age_s = serializers.FloatField(
        allow_null=True, help_text="Seconds since the newest routing table was published."
    )
    loops = LoopSerializer(many=True)
    open_services = OpenServiceSerializer(
        many=True, help_text="Servers that accept commands without authentication."
    )
    refused_messages = RefusalSerializer(
        many=True, help_text="Messages refused in the last 24 hours, by instance and reason."
    )


@login_not_required
def live(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"live": True})


@login_not_required
def ready(request: HttpRequest) -> JsonResponse:
    """Respond with 200 if the database is reachable, else with 503."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return JsonResponse({"ready": False, "reason": f"database: {error}"}, status=503)
    # A stopped loop is reported here but fails only `loops`: people need the pages to abort.
    return JsonResponse({"ready": True, **loops_document(read_pulses())})


@login_not_required
def loops(request: HttpRequest) -> JsonResponse:
    """Report the age of each loop's last turn; 503 if a loop has stopped."""
    pulses = read_pulses()
    try:
        document = {"well": pulses.is_well, **loops_document(pulses)}
    except DatabaseError as error:
        return JsonResponse({"well": False, "trouble": f"database: {error}"}, status=503)
    return JsonResponse(document, status=200 if pulses.is_well else 503)


def loops_document(pulses: Pulses) -> dict[str, Any]:
    """Return the ages in seconds by loop, the late loops and the age of the newest table."""
    return {
        "loops": {pulse.loop.name: _rounded(pulse.age_s) for pulse in pulses.loops},
        "late": [pulse.loop.name for pulse in pulses.late],
        "trouble": pulses.trouble,
        "published_age_s": _rounded(published_age_s()),
        "retention": summary(),
    }


def _rounded(age_s: float | None) -> float | None:
    return None if age_s is None else round(age_s, 1)


@require_safe
def loops_banner(request: HttpRequest) -> HttpResponse:
    """Render the banner about stopped loops, which pages refresh every few seconds."""
    return render(request, "parts/loops.html", {"pulses": read_pulses()})


def page_context(request: HttpRequest) -> dict[str, Any]:
    """Add `pulses` to the context of every page; read from Redis only if the template uses it."""
    return {"pulses": SimpleLazyObject(read_pulses)}


class StatusView(APIView):
    """Status of the control plane's loops."""

    @extend_schema(responses=StatusSerializer)
    def get(self, request: Request) -> Response:
        """Return the age of each loop's last turn, and the effect while it is stopped."""
        pulses = read_pulses()
        rows = [
            {
                "name": pulse.loop.name,
                "turned_by": pulse.loop.turned_by,
                "age_s": _rounded(pulse.age_s),
                "late_after_s": pulse.loop.late_after_s,
                "is_late": pulse.is_late,
                "without_it": pulse.loop.without_it,
            }
            for pulse in pulses.loops
        ]
        document = {
            "is_well": pulses.is_well,
            "trouble": pulses.trouble,
            "published_age_s": _rounded(published_age_s()),
            "loops": rows,
            "open_services": open_services(database_now()),
            "refused_messages": recent_refusals(database_now()),
        }
        return Response(StatusSerializer(document).data)


@extend_schema(exclude=True)
@api_view(["GET"])
def metrics(request: Request) -> HttpResponse:
    """Export metrics for Prometheus, which authenticates with an API token."""
    registry = CollectorRegistry()
    _loop_gauges(registry)
    _service_gauges(registry)
    _message_counters(registry)
    _refusal_counters(registry)
    _retention_gauges(registry)
    readable = Gauge(
        "interlock_streams_readable", "Whether the streams can be read.", registry=registry
    )
    try:
        backlog = read_backlog()
    except redis.RedisError:
        readable.set(0)
        return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
    readable.set(1)
    of_stream = {
        "entries": "Entries that are not applied yet.",
        "pending_entries": "Entries that a consumer has read but not applied.",
        "oldest_seconds": "Age of the oldest entry that is not applied yet.",
    }
    for name, text in of_stream.items():
        gauge = Gauge(f"interlock_stream_{name}", text, ["stream"], registry=registry)
        for stream, state in backlog.streams.items():
            values = (state.entries, state.pending, state.oldest_s)
            gauge.labels(stream).set(dict(zip(of_stream, values, strict=True))[name])
    dead = "Entries that cannot be applied, kept in interlock:dead."
    Gauge("interlock_dead_entries", dead, registry=registry).set(backlog.dead)
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _refusal_counters(registry: CollectorRegistry) -> None:
    text = "Refused outcomes by metric, as named by the sender, and reason."
    labels = ["metric", "reason"]
    counter = Counter("interlock_outcomes_refused", text, labels, registry=registry)
    for metric, reason, count in refusals_by_reason():
        counter.labels(metric, reason).inc(count)


def _retention_gauges(registry: CollectorRegistry) -> None:
    labels = ["kind"]
    rows = Counter("interlock_retention_rows", "Expired rows deleted.", labels, registry=registry)
    size = Counter("interlock_retention_bytes", "Bytes freed.", labels, registry=registry)
    text = "Whether expired rows are left: the last run failed or had no time."
    behind = Gauge("interlock_retention_behind", text, labels, registry=registry)
    for run in RetentionRun.objects.all():
        rows.labels(run.name).inc(run.rows_total)
        size.labels(run.name).inc(run.bytes_total)
        behind.labels(run.name).set(run.is_behind or bool(run.error))


def _loop_gauges(registry: CollectorRegistry) -> None:
    pulses = read_pulses()
    text = "Seconds since the last successful turn of a control loop."
    age = Gauge("interlock_control_loop_age_seconds", text, ["loop"], registry=registry)
    text = "Whether a control loop has stopped: its last successful turn is too old."
    late = Gauge("interlock_control_loop_late", text, ["loop"], registry=registry)
    for pulse in pulses.loops:
        if pulse.age_s is not None:
            age.labels(pulse.loop.name).set(pulse.age_s)
        # An unknown state counts as late, so that an alert fires.
        late.labels(pulse.loop.name).set(pulse.is_late or bool(pulses.trouble))
    if (since_s := published_age_s()) is not None:
        text = "Seconds since the newest routing table was published."
        Gauge("interlock_published_age_seconds", text, registry=registry).set(since_s)


def _service_gauges(registry: CollectorRegistry) -> None:
    text = "Whether a server accepts commands without authentication."
    labels = ["kind", "address"]
    gauge = Gauge("interlock_service_open", text, labels, registry=registry)
    for row in recent_checks(database_now()):
        if not row.trouble:
            gauge.labels(row.kind, row.address).set(row.is_open)


def _message_counters(registry: CollectorRegistry) -> None:
    text = "Refused messages; an empty instance means that the sender is unknown."
    labels = ["instance", "channel", "reason"]
    counter = Counter("interlock_refused_messages", text, labels, registry=registry)
    for row in Refusal.objects.all():
        counter.labels(row.instance, row.channel, row.reason).inc(row.count)
