"""What the API says of plans, rollouts and the fleet, and what it takes."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.models.models import valid_name
from apps.rollouts.check_kinds import DEFAULT_CHECKS
from apps.rollouts.models import Evaluation, Instance, Plan, Rollout, RolloutEvent
from apps.rollouts.plans import DEFAULT_BAKE_S


class StepSerializer(serializers.Serializer[Any]):
    weight_bp = serializers.IntegerField(min_value=1, max_value=10_000)
    bake_s = serializers.IntegerField(min_value=0, max_value=30 * 86_400, default=DEFAULT_BAKE_S)
    requests_min = serializers.IntegerField(min_value=0, default=0)
    checks = serializers.ListField(child=serializers.CharField(), default=list(DEFAULT_CHECKS))


class PlanSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=100, validators=[valid_name])
    description = serializers.CharField(default="", allow_blank=True)
    time_scale_permille = serializers.IntegerField(min_value=1, max_value=10_000, default=1_000)
    interval_s = serializers.IntegerField(min_value=1, max_value=3_600, default=10)
    extend_max = serializers.IntegerField(min_value=1, max_value=1_000, default=3)
    margin_bp = serializers.IntegerField(min_value=1, max_value=9_999, default=100)
    alpha_ppm = serializers.IntegerField(min_value=1, max_value=500_000, default=10_000)
    reference_requests_min = serializers.IntegerField(min_value=1, default=5_000)
    latency_slack_us = serializers.IntegerField(min_value=0, max_value=60_000_000, default=1_000)
    steps = StepSerializer(many=True)


class EventSerializer(serializers.ModelSerializer[RolloutEvent]):
    class Meta:
        model = RolloutEvent
        fields = [
            "at",
            "from_state",
            "to_state",
            "reason",
            "actor",
            "step_index",
            "weight_bp",
            "generation",
            "evidence",
        ]


class EvaluationSerializer(serializers.ModelSerializer[Evaluation]):
    check = serializers.CharField(source="check_name")

    class Meta:
        model = Evaluation
        fields = ["at", "step_index", "check", "verdict", "reason", "evidence"]


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    model = serializers.CharField(source="model.name")
    target = serializers.IntegerField(source="target.number")
    baseline = serializers.IntegerField(source="baseline.number", allow_null=True)
    plan = serializers.CharField(source="plan.name", allow_null=True)
    steps = serializers.SerializerMethodField()

    class Meta:
        model = Rollout
        fields = [
            "id",
            "kind",
            "model",
            "target",
            "baseline",
            "plan",
            "phase",
            "is_live",
            "reason",
            "revision",
            "step_index",
            "weight_bp",
            "steps",
            "generation",
            "step_started_at",
            "step_due_at",
            "step_limit_at",
            "started_by",
            "started_at",
            "ended_at",
        ]

    @extend_schema_field(StepSerializer(many=True))
    def get_steps(self, rollout: Rollout) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = rollout.plan_document.get("steps", [])
        return steps


class StartSerializer(serializers.Serializer[Any]):
    """`version` is a number or an alias, such as `candidate`."""

    model = serializers.CharField()
    version = serializers.CharField()
    plan = serializers.CharField(required=False, allow_null=True)


class ActSerializer(serializers.Serializer[Any]):
    """`revision`: what the caller saw; a stale one is refused with 409. Without it: whatever is."""

    reason = serializers.CharField(required=False, default="", allow_blank=True, max_length=1_000)
    revision = serializers.IntegerField(required=False, allow_null=True, default=None)


class ReasonSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(required=False, default="", allow_blank=True, max_length=1_000)


class ExplanationSerializer(serializers.Serializer[Any]):
    rollout = RolloutSerializer()
    summary = serializers.CharField()
    events = EventSerializer(many=True)
    checks = EvaluationSerializer(many=True)


class InstanceSerializer(serializers.ModelSerializer[Instance]):
    class Meta:
        model = Instance
        fields = [
            "name",
            "boot",
            "applied_generation",
            "refused_generation",
            "refusal",
            "dropped",
            "is_stopping",
            "pinned",
            "reported_at",
        ]


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan in the form that PlanSerializer takes."""
    fields = [str(name) for name in PlanSerializer().fields if str(name) != "steps"]
    step_fields = [str(name) for name in StepSerializer().fields]
    steps = [{name: getattr(step, name) for name in step_fields} for step in plan.steps.all()]
    return {**{name: getattr(plan, name) for name in fields}, "steps": steps}
