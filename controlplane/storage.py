"""The storage page and its REST endpoint: retention periods, sizes and deletions."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.lib.pages import PageRequest, page
from controlplane.retention.selectors import kept_kinds


class KeptSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(source="kind.name")
    variable = serializers.CharField(source="kind.variable", help_text="The environment variable.")
    days = serializers.IntegerField(help_text="Retention in days; 0: for ever.")
    counted_from = serializers.CharField(source="kind.counted_from")
    what = serializers.CharField(source="kind.what")
    rows = serializers.IntegerField(source="size.rows", help_text="Approximate number of rows.")
    bytes = serializers.IntegerField(source="size.bytes", help_text="Bytes, indexes included.")
    ran_at = serializers.DateTimeField(source="run.ran_at", default=None)
    freed_at = serializers.DateTimeField(source="run.freed_at", default=None)
    rows_freed = serializers.IntegerField(source="run.rows", default=0)
    bytes_freed = serializers.IntegerField(source="run.bytes", default=0)
    rows_freed_total = serializers.IntegerField(source="run.rows_total", default=0)
    bytes_freed_total = serializers.IntegerField(source="run.bytes_total", default=0)
    is_behind = serializers.BooleanField(source="run.is_behind", default=False)
    held = serializers.CharField(
        source="run.held", default="", help_text="Why expired rows are kept, else empty."
    )
    error = serializers.CharField(source="run.error", default="")


class RetentionView(APIView):
    """Retention of rows."""

    @extend_schema(responses=KeptSerializer(many=True))
    def get(self, request: Request) -> Response:
        """List the kinds of rows with their retention, size and deletions."""
        return Response(KeptSerializer(kept_kinds(), many=True).data)


@page
@require_safe
def storage(request: PageRequest) -> HttpResponse:
    return render(request, "storage.html", {"kinds": kept_kinds()})
