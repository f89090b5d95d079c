"""REST endpoints of the serving history: what served a model when, and who decided it."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.lib.clock import database_now
from apps.lib.errors import NotFound
from apps.rollouts.models import ServingChange
from apps.rollouts.selectors.provenance import decider_of
from apps.rollouts.serving_history import history_of, serving_at
from apps.rollouts.timestamps import EXAMPLE, parse_timestamp

AT = OpenApiParameter(
    "at", str, description=f"An ISO 8601 timestamp such as {EXAMPLE}; default: now"
)


class DeciderSerializer(serializers.Serializer[Any]):
    """`kind` is rollout or experiment; empty for a direct change by a person or a setting."""

    kind = serializers.CharField()
    id = serializers.CharField()


class ServingChangeSerializer(serializers.ModelSerializer[ServingChange]):
    """How a model was served from `at` until the next change."""

    model = serializers.CharField(source="model_name")
    decided_by = serializers.SerializerMethodField()

    class Meta:
        model = ServingChange
        fields = [
            "model",
            "at",
            "generation",
            "stable",
            "split",
            "shadow",
            "reason",
            "actor",
            "decided_by",
        ]

    def get_decided_by(self, change: ServingChange) -> DeciderSerializer:
        return DeciderSerializer(decider_of(change)).data  # type: ignore[return-value]


class ServingHistoryMixin:
    """Adds the serving history to the model endpoints."""

    @extend_schema(parameters=[AT], responses=ServingChangeSerializer)
    @action(detail=True)
    def serving(self, request: Request, name: str) -> Response:
        """Return what served the model at a time, since when, and who decided it."""
        text = request.query_params.get("at")
        at = database_now() if text is None else parse_timestamp(text, "at")
        model_name = self.get_object().name  # type: ignore[attr-defined]
        change = serving_at(model_name, at)
        if change is None:
            raise NotFound(f"No serving history of {model_name} at {at.isoformat()}.")
        return Response(ServingChangeSerializer(change).data)

    @extend_schema(responses=ServingChangeSerializer(many=True))
    @action(detail=True, url_path="serving-history")
    def serving_history(self, request: Request, name: str) -> Response:
        """List all changes of how the model was served, newest first."""
        rows = history_of(self.get_object().name)  # type: ignore[attr-defined]
        page = self.paginate_queryset(rows)  # type: ignore[attr-defined]
        shown = ServingChangeSerializer(page, many=True).data
        return self.get_paginated_response(shown)  # type: ignore[attr-defined,no-any-return]
