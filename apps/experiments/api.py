"""REST API of experiments, their moves and results, snapshots, and outcomes by batch."""

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
from apps.experiments.power import Asked, plan_size
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

FORMAT = OpenApiParameter("format", str, enum=["json", "csv"], description="`csv`: a table")


def register(router: BaseRouter) -> None:
    """Add this app's endpoints to the API's router."""
    router.register("metrics", MetricViewSet, basename="api-metric")
    router.register("experiments", ExperimentViewSet, basename="api-experiment")
    router.register("snapshots", SnapshotViewSet, basename="api-snapshot")
    router.register("outcomes", OutcomeViewSet, basename="api-outcome")
    router.register("version-outcomes", VersionOutcomesViewSet, basename="api-version-outcomes")
    router.register("outcome-imports", ImportViewSet, basename="api-outcome-import")


class CsvRenderer(BaseRenderer):
    """A result as a table; an error as its one line."""

    media_type = "text/csv"
    format = "csv"
    charset = "utf-8"

    def render(self, data: Any, media_type: str | None = None, context: Any = None) -> str:
        if "error" in data:
            return f"{data['error']['message']}\n"
        return to_csv(data["result"])


@extend_schema_view(
    list=extend_schema(
        summary="Experiments, the newest first",
        parameters=[
            OpenApiParameter("model", str, description="Only experiments on this model"),
            OpenApiParameter("state", str, description="Only experiments in this state"),
        ],
    ),
    retrieve=extend_schema(summary="One experiment with its variants and metrics"),
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
        experiment = services.create_experiment(
            model=model,
            actor=actor_of(request),
            now=database_now(),
            **read_draft(fields),
        )
        return Response(self._shown(experiment.name), status=status.HTTP_201_CREATED)

    @extend_schema(
        summary="Change a draft",
        description="What is left out stays; `metrics` and `variants` are replaced whole.",
        request=ExperimentEditSerializer,
        responses={200: ExperimentSerializer},
    )
    def partial_update(self, request: Request, name: str) -> Response:
        return self._act(
            request, name, services.edit_experiment, ExperimentEditSerializer, read_draft
        )

    @extend_schema(summary="Delete a draft", responses={204: None})
    def destroy(self, request: Request, name: str) -> Response:
        experiment = self._operated(request, name)
        services.delete_experiment(
            experiment=experiment, actor=actor_of(request), now=database_now()
        )
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        summary="Load the variants' versions, then assign units",
        request=MoveSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def start(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.start_experiment)

    @extend_schema(
        summary="Give everybody stable for a while; units keep their variants",
        request=MoveSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.pause_experiment)

    @extend_schema(
        summary="Assign units again, each to the variant it had",
        request=MoveSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.resume_experiment)

    @extend_schema(
        summary="Stop assigning units; the final result follows soon and is frozen",
        request=MoveSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.stop_experiment)

    @extend_schema(
        summary="End it and claim no verdict",
        request=MoveSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def abandon(self, request: Request, name: str) -> Response:
        return self._act(request, name, services.abandon_experiment)

    @extend_schema(
        summary="End it and start a rollout of the winner's version",
        description="Both happen, or neither: what the rollout refuses leaves the experiment on.",
        request=ShipSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def ship(self, request: Request, name: str) -> Response:
        return self._act(request, name, ship_experiment, ShipSerializer, _read_plan)

    @extend_schema(
        summary="Change the variants' weights while it runs or is paused",
        request=WeightsSerializer,
        responses={200: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def weights(self, request: Request, name: str) -> Response:
        return self._act(request, name, change_weights, WeightsSerializer)

    @extend_schema(
        summary="Ask for an analysis now; the next tick makes it",
        request=RefreshSerializer,
        responses={202: ExperimentSerializer},
    )
    @action(detail=True, methods=["post"])
    def refresh(self, request: Request, name: str) -> Response:
        answer = self._act(request, name, services.request_refresh, RefreshSerializer)
        answer.status_code = status.HTTP_202_ACCEPTED
        return answer

    @extend_schema(
        summary="The last analysis; frozen once it is completed",
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
        return _downloadable(request, ResultSerializer(self.get_object()).data, name)

    @extend_schema(
        summary="How many units it needs, in how many days, and what it detects",
        parameters=[PowerInputSerializer],
        responses={200: PowerSerializer},
    )
    @action(detail=True, methods=["get"], serializer_class=PowerSerializer)
    def power(self, request: Request, name: str) -> Response:
        given = PowerInputSerializer(data=request.query_params.dict())
        given.is_valid(raise_exception=True)
        plan = plan_size(self.get_object(), Asked(**given.validated_data), database_now())
        return Response(PowerSerializer(plan).data)

    @extend_schema(
        summary="The course of the result over time, the oldest first",
        responses=PointSerializer(many=True),
    )
    @action(detail=True, methods=["get"], serializer_class=PointSerializer)
    def points(self, request: Request, name: str) -> Response:
        rows: Any = self.get_object().points.order_by("at", "id")
        page: Any = self.paginate_queryset(rows)
        return self.get_paginated_response(PointSerializer(page, many=True).data)

    @extend_schema(
        summary="What became of it, when, by whom and why; the oldest first",
        responses=ExperimentEventSerializer(many=True),
    )
    @action(detail=True, methods=["get"], serializer_class=ExperimentEventSerializer)
    def events(self, request: Request, name: str) -> Response:
        rows: Any = self.get_object().events.order_by("id")
        page: Any = self.paginate_queryset(rows)
        return self.get_paginated_response(ExperimentEventSerializer(page, many=True).data)

    @extend_schema(
        summary="Results that were kept, the newest first",
        responses=SnapshotRowSerializer(many=True),
    )
    @action(detail=True, methods=["get"], serializer_class=SnapshotRowSerializer)
    def snapshots(self, request: Request, name: str) -> Response:
        rows: Any = snapshots_of(self.get_object())
        page: Any = self.paginate_queryset(rows)
        return self.get_paginated_response(SnapshotRowSerializer(page, many=True).data)

    @extend_schema(
        summary="Keep the present result under an address of its own",
        request=SnapshotInputSerializer,
        responses={201: SnapshotSerializer},
    )
    @snapshots.mapping.post
    def snapshot(self, request: Request, name: str) -> Response:
        experiment = self._operated(request, name)
        given = SnapshotInputSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        kept = make_snapshot(
            experiment=experiment,
            note=given.validated_data.get("note", ""),
            actor=actor_of(request),
            now=database_now(),
        )
        return Response(SnapshotSerializer(kept).data, status=status.HTTP_201_CREATED)

    def _operated(self, request: Request, name: str) -> Experiment:
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
        serializer: Any = MoveSerializer,
        read: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    ) -> Response:
        """Call `service` with what `serializer` and `read` make of the request."""
        experiment = self._operated(request, name)
        given = serializer(data=request.data)
        given.is_valid(raise_exception=True)
        service(
            experiment=experiment,
            actor=actor_of(request),
            now=database_now(),
            **read(given.validated_data),
        )
        return Response(self._shown(name))

    def _shown(self, name: str) -> Any:
        return ExperimentSerializer(self.get_queryset().get(name=name)).data


def read_draft(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a draft's fields in the form of the services. Raises NotFound for a metric."""
    fields = dict(given)
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


def _read_plan(given: Mapping[str, Any]) -> dict[str, Any]:
    plan = given.get("plan")
    return {**given, "plan": find_plan(plan) if plan else None}


def _downloadable(request: Request, data: Any, name: str) -> Response:
    response = Response(data)
    if request.accepted_renderer.format == CsvRenderer.format:
        response["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    return response


@extend_schema_view(retrieve=extend_schema(summary="A result that was kept", parameters=[FORMAT]))
class SnapshotViewSet(mixins.RetrieveModelMixin, GenericViewSet[ResultSnapshot]):
    """Results as they were, each under an address that never shows anything else."""

    queryset = ResultSnapshot.objects.select_related("experiment")
    serializer_class = SnapshotSerializer
    lookup_value_regex = "[0-9a-fA-F-]{36}"
    renderer_classes = [JSONRenderer, CsvRenderer]


class OutcomeViewSet(GenericViewSet[RefusedOutcomes]):
    """Measured results for units, in batches."""

    queryset = RefusedOutcomes.objects.none()
    serializer_class = RefusalCountSerializer

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
        report = parse_and_record(request.data, database_now(), actor_of(request).name)
        return Response(OutcomeReportSerializer(report).data)

    @extend_schema(
        summary="How many outcomes were refused, by metric, reason and sender; the last first",
        parameters=[OpenApiParameter("metric", str, description="Only of this metric name")],
        responses=RefusalCountSerializer(many=True),
    )
    @action(detail=False, methods=["get"], filter_backends=[])
    def refused(self, request: Request) -> Response:
        rows: Any = refusal_rows(request.query_params.get("metric"))
        page: Any = self.paginate_queryset(rows)
        return self.get_paginated_response(RefusalCountSerializer(page, many=True).data)
