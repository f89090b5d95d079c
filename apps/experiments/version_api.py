"""REST API of outcomes that name a version's requests."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from apps.experiments.selectors.versions import outcomes_of
from apps.lib.clock import database_now
from apps.lib.errors import Invalid, NotFound
from apps.models.models import ModelVersion


class CountSerializer(serializers.Serializer[Any]):
    """Number of outcomes, their mean, and the standard error of a proportion."""

    n = serializers.IntegerField()
    mean = serializers.FloatField(allow_null=True)
    error = serializers.FloatField(allow_null=True)


class HourSerializer(CountSerializer):
    hour = serializers.DateTimeField(help_text="Hour of the version's answers, UTC.")


class VersionOutcomesSerializer(serializers.Serializer[Any]):
    """Outcomes of one metric whose request_id names an answer of the version."""

    metric = serializers.CharField()
    kind = serializers.CharField()
    direction = serializers.CharField()
    ever = CountSerializer()
    last_day = CountSerializer()
    hours = HourSerializer(many=True, help_text="Hours of the last 14 days, oldest first.")


class VersionOutcomesViewSet(ViewSet):
    """A version's measured quality over time."""

    @extend_schema(
        summary="Get the outcomes of a version's answers, by metric and hour",
        parameters=[
            OpenApiParameter("model", str, required=True, description="Model name"),
            OpenApiParameter("version", int, required=True, description="Version number"),
        ],
        responses=VersionOutcomesSerializer(many=True),
    )
    def list(self, request: Request) -> Response:
        name, number = (request.query_params.get(key, "") for key in ("model", "version"))
        if not name or not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise Invalid("model and version are required: ?model=digits&version=4")
        version = ModelVersion.objects.filter(model__name=name, number=int(number)).first()
        if version is None:
            raise NotFound(f"{name} has no version {number}")
        metrics = outcomes_of(version, database_now())
        return Response(VersionOutcomesSerializer(metrics, many=True).data)
