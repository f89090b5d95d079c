"""REST API of plans, rollouts and the fleet."""

from __future__ import annotations

from typing import Any

import msgspec
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import BaseRouter
from rest_framework.viewsets import GenericViewSet, ViewSet

from apps.lib.clock import database_now
from apps.lib.errors import NotFound
from apps.models.access import actor_of, require_role
from apps.models.api import find_model, find_version
from apps.models.models import Role
from apps.rollouts import services
from apps.rollouts.explain import latest_checks, summarise
from apps.rollouts.models import Instance, Plan, Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument
from apps.rollouts.serializers import (
    ActSerializer,
    ExplanationSerializer,
    InstanceSerializer,
    PlanSerializer,
    ReasonSerializer,
    RolloutSerializer,
    StartSerializer,
    plan_to_json,
)

UUID_PATTERN = "[0-9a-fA-F-]{36}"


def register(router: BaseRouter) -> None:
    """Add this app's endpoints to the API's router."""
    router.register("plans", PlanViewSet, basename="plan")
    router.register("rollouts", RolloutViewSet, basename="rollout")
    router.register("rollbacks", RollbackViewSet, basename="rollback")
    router.register("instances", InstanceViewSet, basename="instance")


class PlanViewSet(GenericViewSet[Plan]):
    """Plans: reusable ordered lists of steps."""

    queryset = Plan.objects.prefetch_related("steps").order_by("name")
    serializer_class = PlanSerializer
    lookup_field = "name"
    lookup_value_regex = "[^/]+"

    def list(self, request: Request) -> Response:
        page = self.paginate_queryset(self.get_queryset())
        return self.get_paginated_response([plan_to_json(plan) for plan in page or []])

    def retrieve(self, request: Request, name: str) -> Response:
        return Response(plan_to_json(self.get_object()))

    @extend_schema(responses={201: PlanSerializer})
    def create(self, request: Request) -> Response:
        """Save a plan; one of the same name is refused."""
        require_role(request.user, None, Role.OPERATOR)
        plan = self._save(request, None)
        return Response(plan_to_json(plan), status=status.HTTP_201_CREATED)

    def update(self, request: Request, name: str) -> Response:
        """Change a plan. Rollouts that follow it go on with the one they started with."""
        require_role(request.user, None, Role.OPERATOR)
        return Response(plan_to_json(self._save(request, self.get_object())))

    @staticmethod
    def _save(request: Request, plan: Plan | None) -> Plan:
        given = PlanSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        asked = dict(given.validated_data)
        description = asked.pop("description")
        return save_plan(
            document=msgspec.convert(asked, PlanDocument),
            description=description,
            is_default=bool(plan and plan.is_default),
            plan=plan,
            actor=actor_of(request),
        )


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
            plan=_find_plan(asked.get("plan")),
            actor=actor_of(request),
            now=database_now(),
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

    @extend_schema(request=ActSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def abort(self, request: Request, pk: str) -> Response:
        """Take all traffic off the target, now, from every live phase."""
        return self._act(request, services.abort_rollout)

    @extend_schema(request=ActSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def promote(self, request: Request, pk: str) -> Response:
        """Make the target stable without waiting for the rest of the plan."""
        return self._act(request, services.promote_now)

    @extend_schema(responses=ExplanationSerializer)
    @action(detail=True)
    def explain(self, request: Request, pk: str) -> Response:
        """Tell in words, and with the numbers, how the rollout came to where it is."""
        rollout = self.get_object()
        told = {
            "rollout": rollout,
            "summary": summarise(rollout),
            "events": rollout.events.all(),
            "checks": latest_checks(rollout),
        }
        return Response(ExplanationSerializer(told).data)

    def _act(self, request: Request, service: Any) -> Response:
        rollout = self.get_object()
        require_role(request.user, rollout.model, Role.OPERATOR)
        given = ActSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        row = service(
            rollout=rollout,
            actor=actor_of(request),
            now=database_now(),
            reason=given.validated_data["reason"],
            revision=given.validated_data["revision"],
        )
        return Response(RolloutSerializer(row).data)


def _find_plan(name: str | None) -> Plan | None:
    if not name:
        return None
    plan = Plan.objects.filter(name=name).first()
    if plan is None:
        raise NotFound(f"There is no plan {name!r}.")
    return plan


class RollbackViewSet(ViewSet):
    """Instant rollback: one table, no steps."""

    lookup_value_regex = "[^/]+"

    @extend_schema(
        parameters=[OpenApiParameter("id", str, OpenApiParameter.PATH, description="Model name")],
        request=ReasonSerializer,
        responses={201: RolloutSerializer},
    )
    @action(detail=True, methods=["post"], url_path="start")
    def start(self, request: Request, pk: str) -> Response:
        """Make the model's previous stable version stable again, at once."""
        model = find_model(pk)
        require_role(request.user, model, Role.OPERATOR)
        given = ReasonSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        rollout = services.rollback_model(
            model=model,
            actor=actor_of(request),
            now=database_now(),
            reason=given.validated_data["reason"],
        )
        return Response(RolloutSerializer(rollout).data, status=status.HTTP_201_CREATED)


class InstanceViewSet(mixins.ListModelMixin, GenericViewSet[Instance]):
    """Data-plane instances, and which generation each serves from."""

    queryset = Instance.objects.order_by("name")
    serializer_class = InstanceSerializer
