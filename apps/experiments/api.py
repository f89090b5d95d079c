"""REST API of metrics, experiments, their results, and outcomes by batch."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.viewsets import GenericViewSet, ViewSet

from apps.experiments import services
from apps.experiments.models import Experiment, Metric
from apps.experiments.outcomes import check_length, parse_and_record
from apps.experiments.serializers import (
    ExperimentInputSerializer,
    ExperimentSerializer,
    ExperimentStartSerializer,
    ExperimentStopSerializer,
    MetricSerializer,
    OutcomeBatchSerializer,
    OutcomeReportSerializer,
    ResultSerializer,
)
from apps.lib.clock import database_now
from apps.lib.errors import NotFound
from apps.models.access import actor_of, require_role
from apps.models.api import find_model
from apps.models.models import Role

NAME_IN_PATH = "[^/]+"


def register(router: BaseRouter) -> None:
    """Add this app's endpoints to the API's router."""
    router.register("metrics", MetricViewSet, basename="api-metric")
    router.register("experiments", ExperimentViewSet, basename="api-experiment")
    router.register("outcomes", OutcomeViewSet, basename="api-outcome")


class MetricViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Metric]):
    """What is measured for a unit; defined once, used by many experiments."""

    queryset = Metric.objects.order_by("name")
    serializer_class = MetricSerializer
    lookup_field = "name"
    lookup_value_regex = NAME_IN_PATH

    @extend_schema(request=MetricSerializer, responses={201: MetricSerializer})
    def create(self, request: Request) -> Response:
        require_role(request.user, None, Role.OPERATOR)
        given = MetricSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        metric = services.create_metric(**given.validated_data, actor=actor_of(request))
        return Response(MetricSerializer(metric).data, status=status.HTTP_201_CREATED)


@extend_schema_view(
    list=extend_schema(
        summary="Experiments, the newest first",
        parameters=[
            OpenApiParameter("model", str, description="Only experiments on this model"),
            OpenApiParameter("state", str, description="Only experiments in this state"),
        ],
    ),
    retrieve=extend_schema(summary="One experiment with its variants"),
)
class ExperimentViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Experiment]
):
    """Comparisons of versions of one model on a metric."""

    serializer_class = ExperimentSerializer
    lookup_field = "name"
    lookup_value_regex = NAME_IN_PATH

    def get_queryset(self) -> QuerySet[Experiment]:
        rows = Experiment.objects.select_related("model__stable")
        filters = {"model": "model__name", "state": "state"}
        asked = self.request.query_params if getattr(self, "request", None) else {}
        return (
            rows.filter(**{filters[key]: asked[key] for key in filters if key in asked})
            .prefetch_related("variants__version", "metric_uses__metric")
            .order_by("-created_at", "name")
        )

    @extend_schema(
        summary="Make a draft",
        request=ExperimentInputSerializer,
        responses={201: ExperimentSerializer},
    )
    def create(self, request: Request) -> Response:
        given = ExperimentInputSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        fields: dict[str, Any] = dict(given.validated_data)
        model = find_model(fields.pop("model"))
        require_role(request.user, model, Role.OPERATOR)
        metric = find_metric(fields.pop("metric"))
        specs = [
            services.VariantSpec(
                name=variant["name"],
                version_number=variant["version"],
                weight_bp=variant["weight_bp"],
                is_control=variant["is_control"],
            )
            for variant in fields.pop("variants")
        ]
        experiment = services.create_experiment(
            model=model,
            metrics=[services.MetricChoice(metric)],
            variants=specs,
            actor=actor_of(request),
            now=database_now(),
            **fields,
        )
        return Response(self._shown(experiment.name), status=status.HTTP_201_CREATED)

    @extend_schema(
        summary="Load the variants' versions, then assign units",
        request=ExperimentStartSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def start(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.start_experiment, ExperimentStartSerializer)

    @extend_schema(
        summary="Stop assigning units and freeze the result",
        request=ExperimentStopSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.stop_experiment, ExperimentStopSerializer)

    @extend_schema(summary="The last analysis; frozen once it is completed")
    @action(detail=True, methods=["get"], serializer_class=ResultSerializer)
    def results(self, request: Request, name: str) -> Response:
        return Response(ResultSerializer(self.get_object()).data)

    def _act(self, request: Request, name: str, service: Any, serializer: Any) -> Response:
        """Call `service` with what `serializer` reads from the request."""
        experiment = self.get_queryset().filter(name=name).first()
        if experiment is None:
            raise NotFound(f"There is no experiment named {name}.")
        require_role(request.user, experiment.model, Role.OPERATOR)
        given = serializer(data=request.data)
        given.is_valid(raise_exception=True)
        service(
            experiment=experiment,
            actor=actor_of(request),
            now=database_now(),
            **given.validated_data,
        )
        return Response(self._shown(name))

    def _shown(self, name: str) -> Any:
        return ExperimentSerializer(self.get_queryset().get(name=name)).data


class OutcomeViewSet(ViewSet):
    """Measured results for units, in batches."""

    @extend_schema(
        summary="Record outcomes; each is judged for itself",
        description=(
            "At most 10,000 in a call. An outcome is recorded, a duplicate of an `event_id` that "
            "is known, or refused with the reason; a refused one costs the others nothing. "
            "Sending a batch again is harmless."
        ),
        request=OutcomeBatchSerializer,
        responses={200: OutcomeReportSerializer},
    )
    def create(self, request: Request) -> Response:
        require_role(request.user, None, Role.OPERATOR)
        check_length(request.META.get("CONTENT_LENGTH"))
        report = parse_and_record(request.data, database_now())
        return Response(OutcomeReportSerializer(report).data)


def find_metric(name: str) -> Metric:
    """Return the metric. Raises NotFound."""
    metric = Metric.objects.filter(name=name).first()
    if metric is None:
        raise NotFound(f"There is no metric named {name}.")
    return metric
