"""Serializers of the REST API of experiments."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.experiments.models import (
    Experiment,
    ExperimentEvent,
    Metric,
    RefusedOutcomes,
    ResultPoint,
    ResultSnapshot,
)
from apps.experiments.power import POWER
from apps.rollouts.serializers import StrictSerializer
from contract.request_ids import REQUEST_ID_LENGTH_MAX

NAME_MAX = 100
# Maximum of an integer column.
INTEGER_MAX = 2**31 - 1


class MetricSerializer(StrictSerializer):
    name = serializers.CharField(max_length=NAME_MAX)
    kind = serializers.ChoiceField(
        choices=Metric.Kind.choices,
        help_text="`proportion`: outcomes are 0 or 1. `mean`: mean of the units' values. `ratio`: "
        "ratio of two sums over the units. `quantile`: quantile of the units' values.",
    )
    direction = serializers.ChoiceField(
        choices=Metric.Direction.choices,
        required=False,
        help_text="Better direction. Default: `decrease` for latency and errors, else `increase`.",
    )
    description = serializers.CharField(allow_blank=True, default="")
    source = serializers.ChoiceField(  # type: ignore[assignment]
        choices=Metric.Source.choices,
        default=Metric.Source.OUTCOMES.value,
        help_text="`outcomes` that clients send, or a measurement of the data plane: `latency` in "
        "ms, `errors`, `cache` hits.",
    )
    outcomes_of = serializers.CharField(
        max_length=NAME_MAX,
        allow_null=True,
        default=None,
        help_text="Metric whose outcomes are used; null: outcomes under its own name.",
    )
    divided_by = serializers.CharField(
        max_length=NAME_MAX,
        allow_null=True,
        default=None,
        help_text="Denominator of a ratio of outcomes: the metric whose outcomes are summed.",
    )
    per_unit = serializers.ChoiceField(
        choices=Metric.PerUnit.choices,
        required=False,
        help_text="How a unit's outcomes are combined into its value; a ratio always sums.",
    )
    missing_is_zero = serializers.BooleanField(
        default=False,
        help_text="Count a unit without an outcome as 0. Default: exclude it until it has one.",
    )
    quantile_ppm = serializers.IntegerField(
        allow_null=True,
        default=None,
        help_text="Level of the quantile in millionths: 950000 is p95.",
    )
    cap = serializers.FloatField(
        allow_null=True, default=None, help_text="Upper limit of a unit's value (winsorisation)."
    )
    window_s = serializers.IntegerField(
        allow_null=True,
        default=None,
        help_text="Seconds after the exposure in which outcomes count; null: no limit.",
    )


class MetricEditSerializer(StrictSerializer):
    description = serializers.CharField(allow_blank=True)


class VariantInputSerializer(StrictSerializer):
    name = serializers.CharField(max_length=NAME_MAX)
    version = serializers.IntegerField(
        min_value=1,
        max_value=INTEGER_MAX,
        allow_null=True,
        default=None,
        help_text="Version number of the model.",
    )
    weight_bp = serializers.IntegerField(
        help_text="Share of the included units in basis points; all weights sum to 10,000."
    )
    is_control = serializers.BooleanField(
        default=False, help_text="Exactly one variant is the control."
    )


class MetricChoiceSerializer(StrictSerializer):
    metric = serializers.CharField(max_length=NAME_MAX)
    role = serializers.CharField(
        default="primary", help_text="`primary` (exactly one), `secondary` or `guardrail`."
    )
    margin = serializers.FloatField(
        allow_null=True,
        default=None,
        help_text="Margin of a guardrail: the tolerated loss, in the metric's unit.",
    )
    margin_relative = serializers.FloatField(
        allow_null=True,
        default=None,
        help_text="Alternative: margin as a share of `baseline`; 0.02 is 2 %.",
    )
    baseline = serializers.FloatField(
        allow_null=True, default=None, help_text="Current value of the metric."
    )
    mann_whitney = serializers.BooleanField(
        default=False, help_text="Show the Mann-Whitney test of a mean too."
    )


class DraftSerializer(StrictSerializer):
    """Fields of a draft that can change. An omitted field keeps its value or has its default."""

    metric = serializers.CharField(
        max_length=NAME_MAX,
        required=False,
        help_text="Shorthand for `metrics` with one primary metric.",
    )
    metrics = MetricChoiceSerializer(many=True, required=False)
    variants = VariantInputSerializer(many=True, required=False)
    hypothesis = serializers.CharField(allow_blank=True, required=False, max_length=10_000)
    coverage_bp = serializers.IntegerField(
        required=False,
        help_text="Share of targeted units that are included, in basis points. Default: 10,000.",
    )
    planned_units = serializers.IntegerField(
        required=False, help_text="Planned number of units, all variants together. Default: 10,000."
    )
    alpha_ppm = serializers.IntegerField(
        required=False, help_text="False-positive rate in millionths: 50,000 is 5 %."
    )
    tenants = serializers.ListField(
        child=serializers.CharField(),
        required=False,
        help_text="Tenants whose units are included; empty: all.",
    )
    headers = serializers.DictField(
        child=serializers.ListField(child=serializers.CharField(trim_whitespace=False)),
        required=False,
        help_text="{header: values}. A request is included if each header has one of its values.",
    )
    holdout_bp = serializers.IntegerField(
        required=False,
        help_text="Units, in basis points, that get stable in every experiment of the model.",
    )
    dimensions = serializers.ListField(
        child=serializers.CharField(),
        required=False,
        help_text="Dimensions of breakdowns: `tenant` or headers; at most 5.",
    )
    stratify_by = serializers.CharField(
        required=False, allow_blank=True, help_text="Dimension to post-stratify by."
    )
    covariate_s = serializers.IntegerField(
        required=False,
        help_text="Seconds before the exposure whose values are CUPED's covariate; 0: none.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "metric" in attrs and "metrics" in attrs:
            raise serializers.ValidationError({"metric": "Give metric or metrics, not both."})
        return attrs


class ExperimentInputSerializer(DraftSerializer):
    name = serializers.CharField(max_length=NAME_MAX)
    model = serializers.CharField(max_length=NAME_MAX)
    variants = VariantInputSerializer(many=True)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "metric" not in attrs and "metrics" not in attrs:
            raise serializers.ValidationError({"metrics": "This field is required."})
        return super().validate(attrs)


class ExperimentEditSerializer(DraftSerializer):
    revision = serializers.IntegerField(
        required=False,
        help_text="Revision that you last read; 409 if the experiment has changed since.",
    )


class MetricUseSerializer(serializers.Serializer[Any]):
    metric = serializers.CharField(source="metric.name")
    role = serializers.CharField()
    margin = serializers.FloatField(allow_null=True)
    mann_whitney = serializers.BooleanField()


class VariantSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    version = serializers.IntegerField(source="version.number")
    weight_bp = serializers.IntegerField()
    is_control = serializers.BooleanField()


class ExperimentSerializer(serializers.Serializer[Experiment]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    model = serializers.CharField(source="model.name")
    metric = serializers.CharField(source="metric.name", help_text="Primary metric.")
    metrics = MetricUseSerializer(source="metric_uses", many=True)
    hypothesis = serializers.CharField()
    state = serializers.CharField(
        help_text="`draft`, `preparing`, `running`, `paused`, `completed` or `failed`."
    )
    conclusion = serializers.CharField(
        help_text="How a completed experiment ended: `stopped`, `shipped` or `abandoned`."
    )
    rollout = serializers.UUIDField(
        source="rollout_id", allow_null=True, help_text="Rollout of a shipped experiment."
    )
    reason = serializers.CharField(help_text="Reason of the current state.")
    revision = serializers.IntegerField()
    coverage_bp = serializers.IntegerField()
    planned_units = serializers.IntegerField()
    alpha_ppm = serializers.IntegerField()
    tenants = serializers.ListField(child=serializers.CharField())
    headers = serializers.DictField(child=serializers.ListField(child=serializers.CharField()))
    holdout_bp = serializers.IntegerField()
    dimensions = serializers.ListField(child=serializers.CharField())
    stratify_by = serializers.CharField()
    covariate_s = serializers.IntegerField()
    generation = serializers.IntegerField(allow_null=True)
    variants = VariantSerializer(many=True)
    created_by = serializers.CharField()
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True)
    refreshed_at = serializers.DateTimeField(allow_null=True)


class MoveSerializer(StrictSerializer):
    revision = serializers.IntegerField(
        required=False,
        help_text="Revision that you last read; 409 if the experiment has changed since.",
    )
    reason = serializers.CharField(required=False, allow_blank=True, max_length=1_000)


class RefreshSerializer(StrictSerializer):
    """A request without fields."""


class WeightsSerializer(MoveSerializer):
    weights_bp = serializers.DictField(
        child=serializers.IntegerField(),
        help_text="{variant: basis points}, for every variant; the sum is 10,000.",
    )


class ShipSerializer(MoveSerializer):
    variant = serializers.CharField(
        required=False, allow_null=True, help_text="Variant to ship. Default: the winner."
    )
    plan = serializers.CharField(
        required=False, allow_null=True, help_text="Plan of the rollout. Default: the default plan."
    )
    force = serializers.BooleanField(
        default=False, help_text="Ship despite doubts about the result; needs a reason."
    )
    overrides = serializers.ListField(
        child=serializers.CharField(), default=list, help_text="Overrides of the rollout."
    )


class SnapshotInputSerializer(StrictSerializer):
    note = serializers.CharField(required=False, allow_blank=True, max_length=500)


class ExperimentEventSerializer(serializers.Serializer[ExperimentEvent]):
    at = serializers.DateTimeField()
    from_state = serializers.CharField()
    to_state = serializers.CharField()
    reason = serializers.CharField()
    actor = serializers.CharField()
    evidence = serializers.JSONField()


class SnapshotRowSerializer(serializers.Serializer[ResultSnapshot]):
    id = serializers.UUIDField()
    experiment = serializers.CharField(source="experiment.name")
    at = serializers.DateTimeField()
    note = serializers.CharField()
    actor = serializers.CharField()


class SnapshotSerializer(SnapshotRowSerializer):
    result = serializers.JSONField(help_text="The result at that time; it never changes.")


class PointSerializer(serializers.Serializer[ResultPoint]):
    at = serializers.DateTimeField()
    numbers = serializers.JSONField(
        help_text="{metric: {arm: [difference, low, high, n]}} by the deciding reading."
    )


class ResultSerializer(serializers.Serializer[Experiment]):
    name = serializers.CharField()
    state = serializers.CharField()
    conclusion = serializers.CharField()
    refreshed_at = serializers.DateTimeField(
        allow_null=True, help_text="Time of the analysis; null before the first one."
    )
    refresh_error = serializers.CharField(
        help_text="Error of the last analysis; `result` is the last good one."
    )
    result = serializers.JSONField(
        help_text="Verdict, sample ratio, arms, comparisons, weight phases, data quality; empty "
        "before the first analysis."
    )


class PowerInputSerializer(StrictSerializer):
    """Parameters of a plan. An omitted baseline is looked up."""

    effect = serializers.FloatField(
        required=False, help_text="Effect to detect, in the metric's unit."
    )
    relative = serializers.FloatField(
        required=False, help_text="Effect to detect, relative to the baseline. Default: 0.05."
    )
    power = serializers.FloatField(default=POWER, help_text="Probability to detect the effect.")
    mean = serializers.FloatField(required=False, help_text="Mean or rate of the baseline.")
    sd = serializers.FloatField(
        required=False, help_text="Standard deviation of the units' values."
    )


class PowerSerializer(serializers.Serializer[Any]):
    """A plan: units, days and detectable effects; null where unknown."""

    metric = serializers.CharField()
    alpha = serializers.FloatField()
    level = serializers.FloatField(help_text="Significance level of one reading of one treatment.")
    power = serializers.FloatField()
    planned_units = serializers.IntegerField()
    traffic = serializers.JSONField(help_text="units_a_day, growth, hours, summary")
    baseline = serializers.JSONField(help_text="mean, sd, skewness, source; null if unknown")
    reason = serializers.CharField(help_text="Why sizes are missing.")
    note = serializers.CharField(
        required=False, help_text="Note on skewed values, if they need more units."
    )
    guardrails = serializers.JSONField(
        help_text="For each guardrail: metric, margin, units, days, reason"
    )
    effect = serializers.FloatField(required=False)
    effect_relative = serializers.FloatField(required=False, allow_null=True)
    sizes = serializers.JSONField(
        required=False, help_text="reading, units, control_units, days: fixed-horizon, sequential"
    )
    planned = serializers.JSONField(
        required=False,
        help_text="Effects that the planned units detect: units, fixed, sequential, days",
    )
    curve = serializers.JSONField(
        required=False, help_text="Detectable effects over time: days, units, fixed, sequential"
    )


class OutcomeSerializer(serializers.Serializer[Any]):
    event_id = serializers.CharField(max_length=200)
    unit_id = serializers.CharField(
        max_length=200,
        required=False,
        allow_null=True,
        allow_blank=True,
        help_text="Optional with request_id.",
    )
    metric = serializers.CharField(max_length=NAME_MAX)
    value = serializers.FloatField()
    occurred_at = serializers.DateTimeField(
        required=False, help_text="ISO 8601 with a time zone. Default: now."
    )
    request_id = serializers.CharField(
        max_length=REQUEST_ID_LENGTH_MAX,
        required=False,
        allow_null=True,
        allow_blank=True,
        help_text="x-interlock-request-id of the prediction.",
    )


class OutcomeBatchSerializer(serializers.Serializer[Any]):
    outcomes = OutcomeSerializer(many=True)


class RefusedOutcomeSerializer(serializers.Serializer[Any]):
    index = serializers.IntegerField(help_text="Position in the batch, from 0.")
    event_id = serializers.CharField(allow_blank=True)
    reason = serializers.CharField()


class RefusalCountSerializer(serializers.ModelSerializer[RefusedOutcomes]):
    class Meta:
        model = RefusedOutcomes
        fields = ["metric_name", "reason", "sender", "via", "count", "last_at"]
        read_only_fields = fields
        extra_kwargs = {
            "sender": {"help_text": "A tenant or a user; empty if unknown."},
            "via": {"help_text": "The data-plane instance, `REST API` or `file`."},
        }


class OutcomeReportSerializer(serializers.Serializer[Any]):
    recorded = serializers.IntegerField()
    duplicates = serializers.IntegerField(
        help_text="Outcomes whose `event_id` is already recorded."
    )
    refused = RefusedOutcomeSerializer(many=True)
    unexposed = serializers.ListField(
        child=serializers.IntegerField(),
        help_text="Positions of outcomes whose unit has no exposure to an experiment still "
        "analysed. They are stored, and count once the unit has one.",
    )
