"""REST API of metrics: create, describe, delete."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from apps.experiments.metrics import create_metric, delete_metric, edit_metric
from apps.experiments.models import Metric
from apps.experiments.serializers import MetricEditSerializer, MetricSerializer
from apps.lib.errors import NotFound
from apps.models.access import actor_of, require_role
from apps.models.models import Role

NAME_IN_PATH = "[^/]+"


@extend_schema_view(
    list=extend_schema(summary="List metrics by name"),
    retrieve=extend_schema(summary="Get a metric"),
)
class MetricViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Metric]):
    """Quantities measured per unit, used by experiments."""

    queryset = Metric.objects.select_related("outcomes_of", "divided_by").order_by("name")
    serializer_class = MetricSerializer
    lookup_field = "name"
    lookup_value_regex = NAME_IN_PATH

    @extend_schema(
        summary="Create a metric",
        description="Only the description can change later: results depend on the definition.",
        request=MetricSerializer,
        responses={201: MetricSerializer},
    )
    def create(self, request: Request) -> Response:
        require_role(request.user, None, Role.OPERATOR)
        serializer = MetricSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        fields: dict[str, Any] = dict(serializer.validated_data)
        for field in ("outcomes_of", "divided_by"):
            name = fields.pop(field, None)
            fields[field] = find_metric(name) if name else None
        metric = create_metric(**fields, actor=actor_of(request))
        return Response(MetricSerializer(metric).data, status=status.HTTP_201_CREATED)

    @extend_schema(
        summary="Change the description of a metric",
        request=MetricEditSerializer,
        responses={200: MetricSerializer},
    )
    def partial_update(self, request: Request, name: str) -> Response:
        require_role(request.user, None, Role.OPERATOR)
        serializer = MetricEditSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        metric = find_metric(name)
        edit_metric(
            metric=metric,
            description=serializer.validated_data["description"],
            actor=actor_of(request),
        )
        return Response(MetricSerializer(find_metric(name)).data)

    @extend_schema(summary="Delete an unused metric", responses={204: None})
    def destroy(self, request: Request, name: str) -> Response:
        require_role(request.user, None, Role.OPERATOR)
        delete_metric(metric=find_metric(name), actor=actor_of(request))
        return Response(status=status.HTTP_204_NO_CONTENT)


def find_metric(name: str) -> Metric:
    """Return the metric. Raises NotFound."""
    rows = Metric.objects.select_related("outcomes_of", "divided_by")
    metric = rows.filter(name=name).first()
    if metric is None:
        raise NotFound(f"There is no metric named {name}.")
    return metric
