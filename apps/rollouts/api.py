"""REST endpoints of rollouts, instant rollbacks and data-plane instances."""

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

EVALUATION = OpenApiParameter("evaluation", int, OpenApiParameter.PATH, description="Evaluation id")
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
            OpenApiParameter("model", str, description="Return only rollouts of this model"),
            OpenApiParameter("phase", str, description="Return only rollouts in this phase"),
        ]
    ),
    retrieve=extend_schema(summary="Get a rollout"),
)
class RolloutViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Rollout]):
    """Start, watch, pause, resume, abort, promote and retry rollouts."""

    serializer_class = RolloutSerializer
    lookup_value_regex = UUID_PATTERN

    def get_queryset(self) -> QuerySet[Rollout]:
        rows = Rollout.objects.select_related("model", "target__model", "baseline", "plan")
        filters = {"model": "model__name", "phase": "phase"}
        query = self.request.query_params if getattr(self, "request", None) else {}
        return rows.filter(**{filters[key]: query[key] for key in filters if key in query})

    @extend_schema(request=StartSerializer, responses={201: RolloutSerializer})
    def create(self, request: Request) -> Response:
        """Start a rollout of a version by the named plan; without one, by the default plan."""
        serializer = StartSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = serializer.validated_data
        model = find_model(data["model"])
        require_role(request.user, model, Role.OPERATOR)
        rollout = services.start_rollout(
            model=model,
            target=find_version(model, data["version"]),
            plan=find_plan(data["plan"]) if data.get("plan") else None,
            actor=actor_of(request),
            now=database_now(),
            overrides=data["overrides"],
            reason=data["reason"],
        )
        return Response(RolloutSerializer(rollout).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=ActSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Stop the bake clock. Weight and guardrail checks stay."""
        return self._act(request, services.pause_rollout)

    @extend_schema(request=ActSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Resume a paused rollout; the step starts its bake time again."""
        return self._act(request, services.resume_rollout)

    @extend_schema(request=AbortSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def abort(self, request: Request, pk: str) -> Response:
        """Take all traffic off the target now. A promoted rollout is rolled back.

        Allowed in every phase and at every revision. After a promotion the response is the new
        rollback rollout.
        """
        return self._act(request, services.abort_rollout, AbortSerializer)

    @extend_schema(request=ReasonSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def reason(self, request: Request, pk: str) -> Response:
        """Record the reason of a rollout that was aborted without one."""
        return self._act(request, services.record_abort_reason, ReasonSerializer)

    @extend_schema(request=ForceSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def promote(self, request: Request, pk: str) -> Response:
        """Make the target stable now, without the remaining steps of the plan."""
        return self._act(request, services.promote_now, ForceSerializer)

    @extend_schema(request=ForceSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def skip(self, request: Request, pk: str) -> Response:
        """Start the next step without waiting for the checks of the current one."""
        return self._act(request, services.skip_step, ForceSerializer)

    @extend_schema(request=ForceSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """Open the gate of the current step.

        Needs the role of the gate. The person who started the rollout cannot approve it.
        """
        # The service reads the required role from the step of the locked row.
        return self._act(request, services.approve_step, ForceSerializer, Role.VIEWER)

    @extend_schema(request=ActSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"], url_path="override-freeze")
    def override_freeze(self, request: Request, pk: str) -> Response:
        """Override the freezes that hold the rollout now; needs the role to set such freezes."""
        return self._act(request, services.override_freeze)

    @extend_schema(request=RetrySerializer, responses={201: RolloutSerializer})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Start a new rollout of the same version, by the plan as it is now.

        Only for a rollout that ended without success.
        """
        rollout = self.get_object()
        require_role(request.user, rollout.model, Role.OPERATOR)
        serializer = RetrySerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        row = services.retry_rollout(
            rollout=rollout,
            actor=actor_of(request),
            now=database_now(),
            overrides=serializer.validated_data["overrides"],
            reason=serializer.validated_data["reason"],
        )
        return Response(RolloutSerializer(row).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses=EvaluationSerializer(many=True))
    @action(detail=True)
    def evaluations(self, request: Request, pk: str) -> Response:
        """List the decision log, newest first: inputs, verdict, evidence and rule."""
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
        """Compute a check again from its stored inputs. Changes nothing."""
        stored = self.get_object().evaluations.filter(pk=int(evaluation)).first()
        if stored is None:
            raise NotFound(f"The rollout has no evaluation {evaluation}.")
        if not stored.inputs:
            raise Conflict(f"Evaluation {evaluation} has no stored inputs: it is too old.")
        again = repeat_check(stored)
        comparison = {
            "is_same": again.verdict.value == stored.verdict,
            "verdict": again.verdict.value,
            "reason": again.reason,
            "stored_verdict": stored.verdict,
        }
        return Response(RepeatSerializer(comparison).data)

    @extend_schema(responses=ExplanationSerializer)
    @action(detail=True)
    def explain(self, request: Request, pk: str) -> Response:
        """Explain the state of the rollout, in sentences and with its evidence."""
        rollout = self.get_object()
        explanation = {
            "rollout": rollout,
            "summary": summarise(rollout),
            "story": describe_history(rollout),
            "events": rollout.events.all(),
            "checks": latest_checks(rollout),
        }
        return Response(ExplanationSerializer(explanation).data)

    def _act(
        self,
        request: Request,
        service: Any,
        serializer_class: type[Serializer[Any]] = ActSerializer,
        role: Role = Role.OPERATOR,
    ) -> Response:
        rollout = self.get_object()
        require_role(request.user, rollout.model, role)
        serializer = serializer_class(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = dict(serializer.validated_data)
        if serializer_class is AbortSerializer:
            del data["revision"]
        row = service(rollout=rollout, actor=actor_of(request), now=database_now(), **data)
        return Response(RolloutSerializer(row).data)


class RollbackViewSet(ViewSet):
    """Instant rollback: one routing table, without steps."""

    lookup_value_regex = "[^/]+"

    @extend_schema(
        parameters=[OpenApiParameter("id", str, OpenApiParameter.PATH, description="Model name")],
        request=RollbackSerializer,
        responses={201: RolloutSerializer},
    )
    @action(detail=True, methods=["post"], url_path="start")
    def start(self, request: Request, pk: str) -> Response:
        """Make the previous stable version stable again at once, or the named earlier one."""
        model = find_model(pk)
        require_role(request.user, model, Role.OPERATOR)
        serializer = RollbackSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = serializer.validated_data
        named = data["version"]
        rollout = services.rollback_model(
            model=model,
            actor=actor_of(request),
            now=database_now(),
            reason=data["reason"],
            to=find_version(model, named) if named else None,
            overrides=data["overrides"],
        )
        return Response(RolloutSerializer(rollout).data, status=status.HTTP_201_CREATED)


class InstanceViewSet(mixins.ListModelMixin, GenericViewSet[Instance]):
    """List data-plane instances and the generation that each one serves."""

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
        """Forget a silent instance that no longer runs; rollouts stop waiting for it."""
        require_role(request.user, None, Role.OPERATOR)
        forget_instance(instance=self.get_object(), actor=actor_of(request), now=database_now())
        return Response(status=status.HTTP_204_NO_CONTENT)
