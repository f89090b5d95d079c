"""Serializers of plans, rollouts, evaluations and instances."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, get_args

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.models.models import Role, valid_name
from apps.rollouts.check_kinds import DEFAULT_CHECKS, KINDS, Mode
from apps.rollouts.checks import EvidenceMode
from apps.rollouts.models import (
    Control,
    Evaluation,
    Gate,
    Instance,
    Plan,
    Rollout,
    RolloutEvent,
)
from apps.rollouts.no_control import notices_of
from apps.rollouts.overrides import Override
from apps.rollouts.plan_risks import Basis
from apps.rollouts.plan_templates import PlanTemplate
from apps.rollouts.plans import DEFAULT_BAKE_S, PlanDocument, document_of, to_json

DAY_S = 86_400
# The maximum of a PostgreSQL integer column.
INTEGER_MAX = 2**31 - 1
CHECKS_SCHEMA = {
    "type": "array",
    "items": {
        "oneOf": [
            {"type": "string", "enum": list(KINDS)},
            {
                "type": "object",
                "required": ["check"],
                "additionalProperties": False,
                "properties": {
                    "check": {"type": "string", "enum": list(KINDS)},
                    "name": {"type": "string"},
                    "mode": {"type": "string", "enum": list(get_args(Mode)), "nullable": True},
                    "on": {"type": "object", "additionalProperties": {"type": "string"}},
                    "settings": {"type": "object", "additionalProperties": True},
                },
            },
        ]
    },
}


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses unknown fields: a misspelt field must not silently get its default."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            known = ", ".join(map(str, self.fields)) or "none"
            message = f"Unknown field; expected one of {known}."
            unknown = {str(name): [message] for name in data if name not in self.fields}
            if unknown:
                raise serializers.ValidationError(unknown)
        return super().to_internal_value(data)


@extend_schema_field(CHECKS_SCHEMA)
class ChecksField(serializers.ListField):
    """Names of checks, or documents with settings; `check_plan` validates them."""


class StepSerializer(StrictSerializer):
    weight_bp = serializers.IntegerField(min_value=0, max_value=10_000)
    shadow_bp = serializers.IntegerField(min_value=0, max_value=10_000, default=0)
    bake_s = serializers.IntegerField(min_value=0, max_value=30 * DAY_S, default=DEFAULT_BAKE_S)
    requests_min = serializers.IntegerField(min_value=0, max_value=INTEGER_MAX, default=0)
    checks = ChecksField(default=list(DEFAULT_CHECKS))
    gate = serializers.ChoiceField(choices=Gate.choices, default=Gate.AUTOMATIC)
    gate_role = serializers.ChoiceField(choices=Role.choices, default=Role.OPERATOR)


class PlanSerializer(StrictSerializer):
    name = serializers.CharField(max_length=100, validators=[valid_name])
    description = serializers.CharField(default="", allow_blank=True)
    is_default = serializers.BooleanField(required=False)
    time_scale_permille = serializers.IntegerField(min_value=1, max_value=10_000, default=1_000)
    interval_s = serializers.IntegerField(min_value=1, max_value=3_600, default=10)
    extend_max = serializers.IntegerField(min_value=1, max_value=1_000, default=3)
    wait_max_s = serializers.IntegerField(min_value=0, max_value=365 * DAY_S, default=7 * DAY_S)
    margin_bp = serializers.IntegerField(min_value=1, max_value=9_999, default=100)
    alpha_ppm = serializers.IntegerField(min_value=1, max_value=500_000, default=10_000)
    reference_requests_min = serializers.IntegerField(
        min_value=1, max_value=INTEGER_MAX, default=5_000
    )
    latency_slack_us = serializers.IntegerField(min_value=0, max_value=60_000_000, default=1_000)
    evidence_mode = serializers.ChoiceField(
        choices=list(get_args(EvidenceMode)), default="any_regression"
    )
    control = serializers.ChoiceField(choices=Control.choices, default=Control.ALL)
    holdback_bp = serializers.IntegerField(min_value=0, max_value=500, default=0)
    final_bake_s = serializers.IntegerField(min_value=0, max_value=30 * DAY_S, default=0)
    rollback_window_s = serializers.IntegerField(min_value=0, max_value=365 * DAY_S, default=DAY_S)
    steps: Any = serializers.ListSerializer(child=StepSerializer(), max_length=100)
    # Sentences: steps without a control to compare with, and the consequence.
    notices = serializers.ListField(child=serializers.CharField(), read_only=True)


class CheckRiskSerializer(serializers.Serializer[Any]):
    """Error rates of one check as fractions; null where unknown."""

    name = serializers.CharField()
    kind = serializers.CharField()
    mode = serializers.ChoiceField(choices=list(get_args(Mode)))
    basis = serializers.ChoiceField(choices=list(get_args(Basis)))
    false_rollback = serializers.FloatField(allow_null=True)
    false_pass = serializers.FloatField(allow_null=True)


class PlanRisksSerializer(serializers.Serializer[Any]):
    false_rollback = serializers.FloatField(allow_null=True)
    checks = CheckRiskSerializer(many=True)


class StepTimeSerializer(serializers.Serializer[Any]):
    number = serializers.IntegerField()
    weight_bp = serializers.IntegerField()
    expected_s = serializers.FloatField(allow_null=True)
    is_in_time = serializers.BooleanField()
    summary = serializers.CharField()


class PlanTimeSerializer(serializers.Serializer[Any]):
    """Expected duration of a plan at one request rate, for a version as good as stable."""

    period = serializers.CharField()
    per_second = serializers.FloatField()
    rate = serializers.CharField()
    error_rate = serializers.FloatField()
    expected_s = serializers.FloatField(allow_null=True)
    can_decide = serializers.BooleanField()
    summary = serializers.CharField()
    steps = StepTimeSerializer(many=True)


class EventSerializer(serializers.ModelSerializer[RolloutEvent]):
    class Meta:
        model = RolloutEvent
        fields = [
            "at",
            "from_state",
            "to_state",
            "headline",
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
        fields = [
            "id",
            "at",
            "step_index",
            "check",
            "verdict",
            "reason",
            "rule",
            "evidence",
            "inputs",
        ]


class RepeatSerializer(serializers.Serializer[Any]):
    """The result of a check computed again from its stored inputs."""

    is_same = serializers.BooleanField()
    verdict = serializers.CharField()
    reason = serializers.CharField()
    stored_verdict = serializers.CharField()


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    model = serializers.CharField(source="model.name")
    target = serializers.IntegerField(source="target.number")
    baseline = serializers.IntegerField(source="baseline.number", allow_null=True)
    plan = serializers.CharField(source="plan.name", allow_null=True)
    steps = serializers.SerializerMethodField()
    overrides = serializers.ListField(child=serializers.CharField())

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
            "headline",
            "reason",
            "revision",
            "step_index",
            "weight_bp",
            "steps",
            "generation",
            "step_started_at",
            "step_due_at",
            "step_limit_at",
            "overrides",
            "retry_of",
            "release",
            "approved_step",
            "approved_by",
            "lacks_reason",
            "started_by",
            "started_at",
            "ended_at",
        ]

    @extend_schema_field(StepSerializer(many=True))
    def get_steps(self, rollout: Rollout) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = rollout.plan_document.get("steps", [])
        return steps


class OverridesSerializer(StrictSerializer):
    overrides = serializers.ListField(
        child=serializers.CharField(),
        default=list,
        help_text=f"Rules to override; any of {', '.join(Override.values)}.",
    )


class StartSerializer(OverridesSerializer):
    """`version` is a number or an alias, such as `candidate`."""

    model = serializers.CharField()
    version = serializers.CharField()
    plan = serializers.CharField(required=False, allow_null=True)
    reason = serializers.CharField(required=False, default="", allow_blank=True, max_length=1_000)


class RetrySerializer(OverridesSerializer):
    reason = serializers.CharField(required=False, default="", allow_blank=True, max_length=1_000)


class AbortSerializer(StrictSerializer):
    """`revision` is ignored: an abort is allowed in every phase and at every revision."""

    reason = serializers.CharField(required=False, default="", allow_blank=True, max_length=1_000)
    revision = serializers.IntegerField(required=False, allow_null=True, default=None)


class ReasonSerializer(StrictSerializer):
    reason = serializers.CharField(max_length=1_000)


class ActSerializer(StrictSerializer):
    """`revision` as the caller last read it; a stale one is refused with 409. Optional."""

    reason = serializers.CharField(required=False, default="", allow_blank=True, max_length=1_000)
    revision = serializers.IntegerField(required=False, allow_null=True, default=None)


class ForceSerializer(ActSerializer, OverridesSerializer):
    """`overrides`: `gate` for a gate that the caller may not open, `freeze`; needs a reason."""


class RollbackSerializer(OverridesSerializer):
    """`version`: an earlier stable version, number or alias. Default: the previous one."""

    reason = serializers.CharField(required=False, default="", allow_blank=True, max_length=1_000)
    version = serializers.CharField(required=False, allow_null=True, default=None)


class ExplanationSerializer(serializers.Serializer[Any]):
    """`story` describes the rollout from its start; `events` and `checks` are its sources."""

    rollout = RolloutSerializer()
    summary = serializers.CharField()
    story = serializers.ListField(child=serializers.CharField())
    events = EventSerializer(many=True)
    checks = EvaluationSerializer(many=True)


class InstanceSerializer(serializers.ModelSerializer[Instance]):
    """`waited_until`: rollouts wait for this silent instance until then. Null: they do not."""

    is_live = serializers.SerializerMethodField()
    waited_until = serializers.SerializerMethodField()

    def get_is_live(self, instance: Instance) -> bool:
        return instance.name in self.context["live"]

    def get_waited_until(self, instance: Instance) -> datetime | None:
        if instance.name not in self.context["silent"]:
            return None
        return instance.reported_at + timedelta(seconds=settings.INSTANCE_FORGOTTEN_S)

    class Meta:
        model = Instance
        fields = [
            "name",
            "boot",
            "applied_generation",
            "serves_unknown",
            "refused_generation",
            "refusal",
            "dropped",
            "is_stopping",
            "pinned",
            "reported_at",
            "is_live",
            "waited_until",
        ]


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as PlanSerializer accepts it."""
    extra = {"description": plan.description, "is_default": plan.is_default}
    return _ordered(document_of(plan), extra)


def template_to_json(template: PlanTemplate) -> dict[str, Any]:
    """Return a template as PlanSerializer accepts it."""
    extra = {"description": template.description, "is_default": False}
    return _ordered(template.document, extra)


def _ordered(document: PlanDocument, extra: dict[str, Any]) -> dict[str, Any]:
    plan = {**to_json(document), **extra, "notices": notices_of(document)}
    for step in plan["steps"]:
        step.pop("is_final_bake", None)
    return {str(name): plan[str(name)] for name in PlanSerializer().fields}
