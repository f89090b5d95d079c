"""REST API of rollouts: start one, watch it, act on it, roll back; and of the fleet."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.serializers import Serializer
from rest_framework.viewsets import GenericViewSet, ViewSet

from apps.lib.clock import database_now
from apps.lib.errors import Conflict, NotFound
from apps.models.access import actor_of, require_role
from apps.models.api import find_model, find_version
from apps.models.models import Role
from apps.rollouts import services
from apps.rollouts.evaluation import repeat_check
from apps.rollouts.fleet_status import live_instances, silent_instances
from apps.rollouts.maintenance import forget_instance
from apps.rollouts.models import Instance, Rollout
from apps.rollouts.narrative import describe_history, latest_checks, summarise
from apps.rollouts.plan_api import PlanTemplateViewSet, PlanViewSet, find_plan
from apps.rollouts.serializers import (
    AbortSerializer,
    ActSerializer,
    EvaluationSerializer,
    ExplanationSerializer,
    ForceSerializer,
    InstanceSerializer,
    ReasonSerializer,
    RepeatSerializer,
    RetrySerializer,
    RollbackSerializer,
    RolloutSerializer,
    StartSerializer,
)

EVALUATION = OpenApiParameter("evaluation", int, OpenApiParameter.PATH, description="Its id")
UUID_PATTERN = "[0-9a-fA-F-]{36}"


def register(router: BaseRouter) -> None:
    """Add this app's endpoints to the API's router."""
    router.register("plans", PlanViewSet, basename="plan")
    router.register("plan-templates", PlanTemplateViewSet, basename="plan-template")
    router.register("rollouts", RolloutViewSet, basename="rollout")
    router.register("rollbacks", RollbackViewSet, basename="rollback")
    router.register("instances", InstanceViewSet, basename="instance")


@extend_schema_view(
    list=extend_schema(
        parameters=[
            OpenApiParameter("model", str, description="Only rollouts of this model"),
            OpenApiParameter("phase", str, description="Only rollouts in this phase"),
        ]
    ),
    retrieve=extend_schema(summary="One rollout"),
)
class RolloutViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Rollout]):
    """Rollouts: start one, watch it, and pause, resume, abort or promote it."""

    serializer_class = RolloutSerializer
    lookup_value_regex = UUID_PATTERN

    def get_queryset(self) -> QuerySet[Rollout]:
        rows = Rollout.objects.select_related("model", "target__model", "baseline", "plan")
        filters = {"model": "model__name", "phase": "phase"}
        asked = self.request.query_params if getattr(self, "request", None) else {}
        return rows.filter(**{filters[key]: asked[key] for key in filters if key in asked})

    @extend_schema(request=StartSerializer, responses={201: RolloutSerializer})
    def create(self, request: Request) -> Response:
        """Start to make a version stable, by the named plan or the default one."""
        given = StartSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = given.validated_data
        model = find_model(asked["model"])
        require_role(request.user, model, Role.OPERATOR)
        rollout = services.start_rollout(
            model=model,
            target=find_version(model, asked["version"]),
            plan=find_plan(asked["plan"]) if asked.get("plan") else None,
            actor=actor_of(request),
            now=database_now(),
            overrides=asked["overrides"],
            reason=asked["reason"],
        )
        return Response(RolloutSerializer(rollout).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=ActSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Stop the clock; weight and guardrails stay."""
        return self._act(request, services.pause_rollout)

    @extend_schema(request=ActSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Bake the step anew."""
        return self._act(request, services.resume_rollout)

    @extend_schema(request=AbortSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def abort(self, request: Request, pk: str) -> Response:
        """Take all traffic off the target, now; of what succeeded, roll the model back.

        It is right from every phase and at every revision. After a promotion the answer is the
        rollout that goes back.
        """
        return self._act(request, services.abort_rollout, AbortSerializer)

    @extend_schema(request=ReasonSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def reason(self, request: Request, pk: str) -> Response:
        """Say afterwards why a rollout was aborted that was aborted without a reason."""
        return self._act(request, services.give_reason, ReasonSerializer)

    @extend_schema(request=ForceSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def promote(self, request: Request, pk: str) -> Response:
        """Make the target stable without waiting for the rest of the plan."""
        return self._act(request, services.promote_now, ForceSerializer)

    @extend_schema(request=ForceSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def skip(self, request: Request, pk: str) -> Response:
        """Go on to the next step without waiting for this one's checks."""
        return self._act(request, services.skip_step, ForceSerializer)

    @extend_schema(request=ForceSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """Open the gate of the present step; it needs the gate's role, and who did not start it."""
        # Which role that is, the service reads from the step of the row that it has locked.
        return self._act(request, services.approve_step, ForceSerializer, Role.VIEWER)

    @extend_schema(request=ActSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"], url_path="override-freeze")
    def override_freeze(self, request: Request, pk: str) -> Response:
        """Let it go on in the freezes that hold it now; it needs the role to set them."""
        return self._act(request, services.override_freeze)

    @extend_schema(request=RetrySerializer, responses={201: RolloutSerializer})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Start what ended without success once more, by the plan as it is now."""
        rollout = self.get_object()
        require_role(request.user, rollout.model, Role.OPERATOR)
        given = RetrySerializer(data=request.data)
        given.is_valid(raise_exception=True)
        row = services.retry_rollout(
            rollout=rollout,
            actor=actor_of(request),
            now=database_now(),
            overrides=given.validated_data["overrides"],
            reason=given.validated_data["reason"],
        )
        return Response(RolloutSerializer(row).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses=EvaluationSerializer(many=True))
    @action(detail=True)
    def evaluations(self, request: Request, pk: str) -> Response:
        """The decision log, the newest answer first: inputs, verdict, numbers, rule."""
        rows: Any = self.get_object().evaluations.order_by("-id")
        page = self.paginate_queryset(rows)
        return self.get_paginated_response(EvaluationSerializer(page, many=True).data)

    @extend_schema(parameters=[EVALUATION], responses=RepeatSerializer)
    @action(
        detail=True,
        url_path=r"evaluations/(?P<evaluation>\d+)/repeat",
        url_name="repeat",
    )
    def repeat(self, request: Request, pk: str, evaluation: str) -> Response:
        """Answer a check again from its stored inputs; nothing is changed by it."""
        stored = self.get_object().evaluations.filter(pk=int(evaluation)).first()
        if stored is None:
            raise NotFound(f"The rollout has no evaluation {evaluation}.")
        if not stored.inputs:
            raise Conflict(f"Evaluation {evaluation} is older than the log of inputs.")
        again = repeat_check(stored)
        told = {
            "is_same": again.verdict.value == stored.verdict,
            "verdict": again.verdict.value,
            "reason": again.reason,
            "stored_verdict": stored.verdict,
        }
        return Response(RepeatSerializer(told).data)

    @extend_schema(responses=ExplanationSerializer)
    @action(detail=True)
    def explain(self, request: Request, pk: str) -> Response:
        """Tell in words, and with the numbers, how the rollout came to where it is."""
        rollout = self.get_object()
        told = {
            "rollout": rollout,
            "summary": summarise(rollout),
            "story": describe_history(rollout),
            "events": rollout.events.all(),
            "checks": latest_checks(rollout),
        }
        return Response(ExplanationSerializer(told).data)

    def _act(
        self,
        request: Request,
        service: Any,
        serializer: type[Serializer[Any]] = ActSerializer,
        role: Role = Role.OPERATOR,
    ) -> Response:
        rollout = self.get_object()
        require_role(request.user, rollout.model, role)
        given = serializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = dict(given.validated_data)
        if serializer is AbortSerializer:
            del asked["revision"]
        row = service(rollout=rollout, actor=actor_of(request), now=database_now(), **asked)
        return Response(RolloutSerializer(row).data)


class RollbackViewSet(ViewSet):
    """Instant rollback: one table, no steps."""

    lookup_value_regex = "[^/]+"

    @extend_schema(
        parameters=[OpenApiParameter("id", str, OpenApiParameter.PATH, description="Model name")],
        request=RollbackSerializer,
        responses={201: RolloutSerializer},
    )
    @action(detail=True, methods=["post"], url_path="start")
    def start(self, request: Request, pk: str) -> Response:
        """Make the previous stable version stable again at once, or the earlier one named."""
        model = find_model(pk)
        require_role(request.user, model, Role.OPERATOR)
        given = RollbackSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        named = given.validated_data["version"]
        rollout = services.rollback_model(
            model=model,
            actor=actor_of(request),
            now=database_now(),
            reason=given.validated_data["reason"],
            to=find_version(model, named) if named else None,
            overrides=given.validated_data["overrides"],
        )
        return Response(RolloutSerializer(rollout).data, status=status.HTTP_201_CREATED)


class InstanceViewSet(mixins.ListModelMixin, GenericViewSet[Instance]):
    """Data-plane instances, and which generation each serves from."""

    queryset = Instance.objects.order_by("name")
    serializer_class = InstanceSerializer
    lookup_field = "name"
    lookup_value_regex = "[^/]+"

    def get_serializer_context(self) -> dict[str, Any]:
        now = database_now()
        known = {"live": live_instances(now), "silent": silent_instances(now)}
        names = {key: set(rows.values_list("name", flat=True)) for key, rows in known.items()}
        return {**super().get_serializer_context(), **names}

    @extend_schema(request=None, responses={204: None})
    @action(detail=True, methods=["post"])
    def forget(self, request: Request, name: str) -> Response:
        """Stop waiting for an instance that went silent, since it is known to be gone."""
        require_role(request.user, None, Role.OPERATOR)
        forget_instance(instance=self.get_object(), actor=actor_of(request), now=database_now())
        return Response(status=status.HTTP_204_NO_CONTENT)
