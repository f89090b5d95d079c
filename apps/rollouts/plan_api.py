"""REST endpoints of plans and plan templates."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet, ViewSet

from apps.lib.clock import database_now
from apps.lib.errors import Invalid, NotFound
from apps.models.access import actor_of, require_role
from apps.models.api import find_model
from apps.models.models import Role
from apps.rollouts.estimates import UsualTraffic
from apps.rollouts.models import Plan
from apps.rollouts.plan_risks import risks_of_plan
from apps.rollouts.plan_store import delete_plan, save_plan
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import PlanDocument, document_of
from apps.rollouts.selectors.estimates import time_of, times_at_rates, times_of_model
from apps.rollouts.serializers import (
    PlanRisksSerializer,
    PlanSerializer,
    PlanTimeSerializer,
    plan_to_json,
    template_to_json,
)

RATE_MAX = 1e9


def find_plan(name: str) -> Plan:
    """Return the plan with that name. Raises NotFound."""
    plan = Plan.objects.filter(name=name).first()
    if plan is None:
        raise NotFound(f"There is no plan {name!r}.")
    return plan


def read_document(data: dict[str, Any]) -> PlanDocument:
    """Return the plan of a request body. Raises Invalid, which names the step and the check."""
    try:
        return msgspec.convert(data, PlanDocument)
    except msgspec.ValidationError as error:
        raise Invalid(f"The plan is not valid: {error}.") from error


def _read_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0.0 <= rate < RATE_MAX:
        raise Invalid(
            f"{text!r} is not a valid request rate; expected at least 0 and below {RATE_MAX:g}.",
            field="per_second",
        )
    return rate


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
        """Create a plan. The name must not be in use."""
        require_role(request.user, None, Role.ADMIN)
        plan = self._save(request, None)
        return Response(plan_to_json(plan), status=status.HTTP_201_CREATED)

    def update(self, request: Request, name: str) -> Response:
        """Change a plan. Running rollouts keep the plan that they started with."""
        require_role(request.user, None, Role.ADMIN)
        return Response(plan_to_json(self._save(request, self.get_object())))

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, name: str) -> Response:
        """Delete a plan other than the default plan. Running rollouts keep their plan."""
        require_role(request.user, None, Role.ADMIN)
        delete_plan(plan=self.get_object(), actor=actor_of(request))
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses=PlanRisksSerializer)
    @action(detail=True)
    def risks(self, request: Request, name: str) -> Response:
        """Return how often the plan rolls back a healthy version or passes one at its limit."""
        risks = risks_of_plan(document_of(self.get_object()))
        return Response(
            {"false_rollback": risks.false_rollback, "checks": [asdict(c) for c in risks.checks]}
        )

    @extend_schema(
        parameters=[
            OpenApiParameter("model", str, description="Use the recent traffic of this model"),
            OpenApiParameter("per_second", float, description="Use this request rate instead"),
        ],
        responses=PlanTimeSerializer(many=True),
    )
    @action(detail=True)
    def times(self, request: Request, name: str) -> Response:
        """Estimate how long each step takes for a version as good as stable. Starts nothing.

        Uses the traffic of the model in the last day and week, one request rate, or without
        either a list of common rates. Empty for a model without traffic.
        """
        plan = document_of(self.get_object())
        model, rate = (request.query_params.get(key, "") for key in ("model", "per_second"))
        if rate:
            times = [time_of(plan, UsualTraffic(_read_rate(rate)), f"{rate} a second")]
        elif model:
            times = times_of_model(plan, find_model(model), database_now())
        else:
            times = times_at_rates(plan)
        return Response(PlanTimeSerializer(times, many=True).data)

    @staticmethod
    def _save(request: Request, plan: Plan | None) -> Plan:
        serializer = PlanSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        data = dict(serializer.validated_data)
        description = data.pop("description")
        is_default = data.pop("is_default", bool(plan and plan.is_default))
        return save_plan(
            document=read_document(data),
            description=description,
            is_default=is_default,
            plan=plan,
            actor=actor_of(request),
        )


class PlanTemplateViewSet(ViewSet):
    """Plan templates, one for each strategy."""

    @extend_schema(responses=PlanSerializer(many=True))
    def list(self, request: Request) -> Response:
        """List all templates. Each can be edited and sent to `plans/`."""
        return Response([template_to_json(template) for template in TEMPLATES])
