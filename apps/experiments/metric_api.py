"""REST API of metrics: define, describe, delete."""

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
    list=extend_schema(summary="Metrics, by name"), retrieve=extend_schema(summary="One metric")
)
class MetricViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Metric]):
    """What is measured for a unit; defined once, used by many experiments."""

    queryset = Metric.objects.select_related("outcomes_of", "divided_by").order_by("name")
    serializer_class = MetricSerializer
    lookup_field = "name"
    lookup_value_regex = NAME_IN_PATH

    @extend_schema(
        summary="Define a metric",
        description="Nothing but its description can be changed later: results rest on the rest.",
        request=MetricSerializer,
        responses={201: MetricSerializer},
    )
    def create(self, request: Request) -> Response:
        require_role(request.user, None, Role.OPERATOR)
        given = MetricSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        fields: dict[str, Any] = dict(given.validated_data)
        for field in ("outcomes_of", "divided_by"):
            name = fields.pop(field, None)
            fields[field] = find_metric(name) if name else None
        metric = create_metric(**fields, actor=actor_of(request))
        return Response(MetricSerializer(metric).data, status=status.HTTP_201_CREATED)

    @extend_schema(
        summary="Change its description",
        request=MetricEditSerializer,
        responses={200: MetricSerializer},
    )
    def partial_update(self, request: Request, name: str) -> Response:
        require_role(request.user, None, Role.OPERATOR)
        given = MetricEditSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        metric = find_metric(name)
        edit_metric(
            metric=metric,
            description=given.validated_data["description"],
            actor=actor_of(request),
        )
        return Response(MetricSerializer(find_metric(name)).data)

    @extend_schema(summary="Delete a metric that nothing uses", responses={204: None})
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
