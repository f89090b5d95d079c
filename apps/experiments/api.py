"""REST API of experiments, their actions and results, snapshots, and batches of outcomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.viewsets import GenericViewSet

from apps.experiments import services
from apps.experiments.exports import to_csv
from apps.experiments.imports.api import ImportViewSet
from apps.experiments.metric_api import NAME_IN_PATH, MetricViewSet, find_metric
from apps.experiments.models import Experiment, RefusedOutcomes, ResultSnapshot
from apps.experiments.outcomes import check_length, parse_and_record
from apps.experiments.power import PowerRequest, plan_size
from apps.experiments.selectors.refusals import refusal_rows
from apps.experiments.serializers import (
    ExperimentEditSerializer,
    ExperimentEventSerializer,
    ExperimentInputSerializer,
    ExperimentSerializer,
    MoveSerializer,
    OutcomeBatchSerializer,
    OutcomeReportSerializer,
    PointSerializer,
    PowerInputSerializer,
    PowerSerializer,
    RefreshSerializer,
    RefusalCountSerializer,
    ResultSerializer,
    ShipSerializer,
    SnapshotInputSerializer,
    SnapshotRowSerializer,
    SnapshotSerializer,
    WeightsSerializer,
)
from apps.experiments.ship import ship_experiment
from apps.experiments.snapshots import make_snapshot, snapshots_of
from apps.experiments.version_api import VersionOutcomesViewSet
from apps.experiments.weights import change_weights
from apps.lib.clock import database_now
from apps.lib.errors import NotFound
from apps.models.access import actor_of, require_role
from apps.models.api import find_model
from apps.models.models import Role
from apps.rollouts.plan_api import find_plan

FORMAT = OpenApiParameter(
    "format",
    str,
    enum=["json", "csv"],
    description="`csv`: a table with one row per metric and variant",
)


def register(router: BaseRouter) -> None:
    """Add this app's endpoints to the API's router."""
    router.register("metrics", MetricViewSet, basename="api-metric")
    router.register("experiments", ExperimentViewSet, basename="api-experiment")
    router.register("snapshots", SnapshotViewSet, basename="api-snapshot")
    router.register("outcomes", OutcomeViewSet, basename="api-outcome")
    router.register("version-outcomes", VersionOutcomesViewSet, basename="api-version-outcomes")
    router.register("outcome-imports", ImportViewSet, basename="api-outcome-import")


class CsvRenderer(BaseRenderer):
    """Renders a result as CSV, an error as one line of text."""

    media_type = "text/csv"
    format = "csv"
    charset = "utf-8"

    def render(self, data: Any, media_type: str | None = None, context: Any = None) -> str:
        if "error" in data:
            return f"{data['error']['message']}\n"
        return to_csv(data["result"])


@extend_schema_view(
    list=extend_schema(
        summary="List experiments, newest first",
        parameters=[
            OpenApiParameter("model", str, description="Only experiments of this model"),
            OpenApiParameter("state", str, description="Only experiments in this state"),
        ],
    ),
    retrieve=extend_schema(summary="Get an experiment with its variants and metrics"),
)
class ExperimentViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Experiment]
):
    """Comparisons of versions of one model on metrics."""

    serializer_class = ExperimentSerializer
    lookup_field = "name"
    lookup_value_regex = NAME_IN_PATH

    def get_queryset(self) -> QuerySet[Experiment]:
        rows = Experiment.objects.select_related("model__stable")
        filters = {"model": "model__name", "state": "state"}
        query = self.request.query_params if getattr(self, "request", None) else {}
        return (
            rows.filter(**{filters[key]: query[key] for key in filters if key in query})
            .prefetch_related("variants__version", "metric_uses__metric")
            .order_by("-created_at", "name")
        )

    @extend_schema(
        summary="Create a draft",
        request=ExperimentInputSerializer,
        responses={201: ExperimentSerializer},
    )
    def create(self, request: Request) -> Response:
        serializer = ExperimentInputSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        fields: dict[str, Any] = dict(serializer.validated_data)
        model = find_model(fields.pop("model"))
        require_role(request.user, model, Role.OPERATOR)
        experiment = services.create_experiment(
            model=model,
            actor=actor_of(request),
            now=database_now(),
            **read_draft(fields),
        )
        return Response(self._serialize(experiment.name), status=status.HTTP_201_CREATED)

    @extend_schema(
        summary="Change a draft",
        description="Omitted fields stay. `metrics` and `variants` are replaced as a whole.",
        request=ExperimentEditSerializer,
        responses={200: ExperimentSerializer},
    )
    def partial_update(self, request: Request, name: str) -> Response:
        return self._act(
            request, name, services.edit_experiment, ExperimentEditSerializer, read_draft
        )

    @extend_schema(summary="Delete a draft", responses={204: None})
    def destroy(self, request: Request, name: str) -> Response:
        experiment = self._find_for_operator(request, name)
        services.delete_experiment(
            experiment=experiment, actor=actor_of(request), now=database_now()
        )
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        summary="Start: load the variants' versions, then assign units",
        request=MoveSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def start(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.start_experiment)

    @extend_schema(
        summary="Pause: all requests get stable; units keep their variants",
        request=MoveSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.pause_experiment)

    @extend_schema(
        summary="Resume: assign units again, each to its previous variant",
        request=MoveSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.resume_experiment)

    @extend_schema(
        summary="Stop: end the experiment; the final result follows within seconds and is frozen",
        request=MoveSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.stop_experiment)

    @extend_schema(
        summary="Abandon: end the experiment without a verdict",
        request=MoveSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def abandon(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.abandon_experiment)

    @extend_schema(
        summary="Ship: end the experiment and start a rollout of the winner's version",
        description="Both happen, or neither. If the rollout is refused, the experiment continues.",
        request=ShipSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def ship(self, request: Request, name: str) -> Response:
        return self._act(request, name, ship_experiment, ShipSerializer, _read_plan)

    @extend_schema(
        summary="Change the weights of a running or paused experiment",
        request=WeightsSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def weights(self, request: Request, name: str) -> Response:
        return self._act(request, name, change_weights, WeightsSerializer)

    @extend_schema(
        summary="Request an analysis at the next tick",
        request=RefreshSerializer,
        responses={202: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def refresh(self, request: Request, name: str) -> Response:
        response = self._act(request, name, services.request_refresh, RefreshSerializer)
        response.status_code = status.HTTP_202_ACCEPTED
        return response

    @extend_schema(
        summary="Get the last result; frozen once the experiment is completed",
        parameters=[FORMAT],
        responses={
            (200, "application/json"): ResultSerializer,
            (200, "text/csv"): OpenApiTypes.STR,
        },
    )
    @action(
        detail=True,
        methods=["get"],
        serializer_class=ResultSerializer,
        renderer_classes=[JSONRenderer, CsvRenderer],
    )
    def results(self, request: Request, name: str) -> Response:
        return _set_filename(request, ResultSerializer(self.get_object()).data, name)

    @extend_schema(
        summary="Plan the size: units, days and detectable effects",
        parameters=[PowerInputSerializer],
        responses={200: PowerSerializer},
    )
    @action(detail=True, methods=["get"], serializer_class=PowerSerializer)
    def power(self, request: Request, name: str) -> Response:
        serializer = PowerInputSerializer(data=request.query_params.dict())
        serializer.is_valid(raise_exception=True)
        plan = plan_size(
            self.get_object(), PowerRequest(**serializer.validated_data), database_now()
        )
        return Response(PowerSerializer(plan).data)

    @extend_schema(
        summary="List the points of the result over time, oldest first",
        responses=PointSerializer(many=True),
    )
    @action(detail=True, methods=["get"], serializer_class=PointSerializer)
    def points(self, request: Request, name: str) -> Response:
        rows: Any = self.get_object().points.order_by("at", "id")
        page: Any = self.paginate_queryset(rows)
        return self.get_paginated_response(PointSerializer(page, many=True).data)

    @extend_schema(
        summary="List the events of an experiment, oldest first",
        responses=ExperimentEventSerializer(many=True),
    )
    @action(detail=True, methods=["get"], serializer_class=ExperimentEventSerializer)
    def events(self, request: Request, name: str) -> Response:
        rows: Any = self.get_object().events.order_by("id")
        page: Any = self.paginate_queryset(rows)
        return self.get_paginated_response(ExperimentEventSerializer(page, many=True).data)

    @extend_schema(
        summary="List the snapshots of an experiment, newest first",
        responses=SnapshotRowSerializer(many=True),
    )
    @action(detail=True, methods=["get"], serializer_class=SnapshotRowSerializer)
    def snapshots(self, request: Request, name: str) -> Response:
        rows: Any = snapshots_of(self.get_object())
        page: Any = self.paginate_queryset(rows)
        return self.get_paginated_response(SnapshotRowSerializer(page, many=True).data)

    @extend_schema(
        summary="Create a snapshot of the current result",
        request=SnapshotInputSerializer,
        responses={201: SnapshotSerializer},
    )
    @snapshots.mapping.post
    def snapshot(self, request: Request, name: str) -> Response:
        experiment = self._find_for_operator(request, name)
        serializer = SnapshotInputSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        new = make_snapshot(
            experiment=experiment,
            note=serializer.validated_data.get("note", ""),
            actor=actor_of(request),
            now=database_now(),
        )
        return Response(SnapshotSerializer(new).data, status=status.HTTP_201_CREATED)

    def _find_for_operator(self, request: Request, name: str) -> Experiment:
        experiment = self.get_queryset().filter(name=name).first()
        if experiment is None:
            raise NotFound(f"There is no experiment named {name}.")
        require_role(request.user, experiment.model, Role.OPERATOR)
        return experiment

    def _act(
        self,
        request: Request,
        name: str,
        service: Callable[..., object],
        serializer_class: Any = MoveSerializer,
        read: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    ) -> Response:
        """Call `service` with the fields that `serializer_class` and `read` return."""
        experiment = self._find_for_operator(request, name)
        serializer = serializer_class(data=request.data)
        serializer.is_valid(raise_exception=True)
        service(
            experiment=experiment,
            actor=actor_of(request),
            now=database_now(),
            **read(serializer.validated_data),
        )
        return Response(self._serialize(name))

    def _serialize(self, name: str) -> Any:
        return ExperimentSerializer(self.get_queryset().get(name=name)).data


def read_draft(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a draft's fields as arguments of the services. Raises NotFound for a metric."""
    fields = dict(data)
    if "metric" in fields:
        fields["metrics"] = [services.MetricChoice(find_metric(fields.pop("metric")))]
    elif "metrics" in fields:
        fields["metrics"] = [
            services.MetricChoice(**{**choice, "metric": find_metric(choice["metric"])})
            for choice in fields["metrics"]
        ]
    if "variants" in fields:
        fields["variants"] = [
            services.VariantSpec(
                name=variant["name"],
                version_number=variant["version"],
                weight_bp=variant["weight_bp"],
                is_control=variant["is_control"],
            )
            for variant in fields["variants"]
        ]
    return fields


def _read_plan(data: Mapping[str, Any]) -> dict[str, Any]:
    plan = data.get("plan")
    return {**data, "plan": find_plan(plan) if plan else None}


def _set_filename(request: Request, data: Any, name: str) -> Response:
    response = Response(data)
    if request.accepted_renderer.format == CsvRenderer.format:
        response["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    return response


@extend_schema_view(retrieve=extend_schema(summary="Get a snapshot", parameters=[FORMAT]))
class SnapshotViewSet(mixins.RetrieveModelMixin, GenericViewSet[ResultSnapshot]):
    """Snapshots of results; their content never changes."""

    queryset = ResultSnapshot.objects.select_related("experiment")
    serializer_class = SnapshotSerializer
    lookup_value_regex = "[0-9a-fA-F-]{36}"
    renderer_classes = [JSONRenderer, CsvRenderer]


class OutcomeViewSet(GenericViewSet[RefusedOutcomes]):
    """Measured results for units, in batches."""

    queryset = RefusedOutcomes.objects.none()
    serializer_class = RefusalCountSerializer

    @extend_schema(
        summary="Record outcomes; each is checked independently",
        description=(
            "At most 10,000 per call. Each outcome is recorded, a duplicate of a recorded "
            "`event_id`, or refused with a reason; refusals do not affect the others. Sending a "
            "batch again is harmless."
        ),
        request=OutcomeBatchSerializer,
        responses={200: OutcomeReportSerializer},
    )
    def create(self, request: Request) -> Response:
        require_role(request.user, None, Role.OPERATOR)
        check_length(request.META.get("CONTENT_LENGTH"))
        report = parse_and_record(request.data, database_now(), actor_of(request).name)
        return Response(OutcomeReportSerializer(report).data)

    @extend_schema(
        summary="List counts of refused outcomes by metric, reason and sender, last updated first",
        parameters=[OpenApiParameter("metric", str, description="Only this metric name")],
        responses=RefusalCountSerializer(many=True),
    )
    @action(detail=False, methods=["get"], filter_backends=[])
    def refused(self, request: Request) -> Response:
        rows: Any = refusal_rows(request.query_params.get("metric"))
        page: Any = self.paginate_queryset(rows)
        return self.get_paginated_response(RefusalCountSerializer(page, many=True).data)
