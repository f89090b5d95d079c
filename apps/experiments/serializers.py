"""What the REST API of experiments takes and gives."""

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
# What a column of the database holds.
INTEGER_MAX = 2**31 - 1


class MetricSerializer(StrictSerializer):
    name = serializers.CharField(max_length=NAME_MAX)
    kind = serializers.ChoiceField(
        choices=Metric.Kind.choices,
        help_text="`proportion`: a unit's outcomes are 0 or 1. `mean`: of the units' values. "
        "`ratio`: of two sums over the units. `quantile`: of the units' values.",
    )
    direction = serializers.ChoiceField(
        choices=Metric.Direction.choices,
        required=False,
        help_text="Which way is better; by default more, but of latency and errors less.",
    )
    description = serializers.CharField(allow_blank=True, default="")
    source = serializers.ChoiceField(  # type: ignore[assignment]
        choices=Metric.Source.choices,
        default=Metric.Source.OUTCOMES.value,
        help_text="`outcomes` that clients send, or what the data plane measures itself: "
        "`latency` in ms, `errors`, `cache` hits.",
    )
    outcomes_of = serializers.CharField(
        max_length=NAME_MAX,
        allow_null=True,
        default=None,
        help_text="The metric whose outcomes it is computed from; null: those under its own name.",
    )
    divided_by = serializers.CharField(
        max_length=NAME_MAX,
        allow_null=True,
        default=None,
        help_text="Of a ratio of outcomes: the metric whose outcomes' sum it is divided by.",
    )
    per_unit = serializers.ChoiceField(
        choices=Metric.PerUnit.choices,
        required=False,
        help_text="How a unit's outcomes make its one value; a ratio always sums them.",
    )
    missing_is_zero = serializers.BooleanField(
        default=False, help_text="Whether a unit without an outcome counts as 0, or waits."
    )
    quantile_ppm = serializers.IntegerField(
        allow_null=True, default=None, help_text="Which quantile, in millionths: 950000 is p95."
    )
    cap = serializers.FloatField(
        allow_null=True, default=None, help_text="A unit's value counts as this at most."
    )
    window_s = serializers.IntegerField(
        allow_null=True,
        default=None,
        help_text="Outcomes count so many seconds after the exposure; null: for ever.",
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
        help_text="Number of the model's version.",
    )
    weight_bp = serializers.IntegerField(
        help_text="Share of the included units in basis points; all sum to 10,000."
    )
    is_control = serializers.BooleanField(default=False, help_text="Exactly one is the control.")


class MetricChoiceSerializer(StrictSerializer):
    metric = serializers.CharField(max_length=NAME_MAX)
    role = serializers.CharField(
        default="primary", help_text="`primary` (exactly one), `secondary` or `guardrail`."
    )
    margin = serializers.FloatField(
        allow_null=True,
        default=None,
        help_text="Of a guardrail: how much worse is tolerable, in the metric's unit.",
    )
    margin_relative = serializers.FloatField(
        allow_null=True, default=None, help_text="Instead: as a share of `baseline`; 0.02 is 2 %."
    )
    baseline = serializers.FloatField(
        allow_null=True, default=None, help_text="What the metric is today."
    )
    mann_whitney = serializers.BooleanField(
        default=False, help_text="Show Mann-Whitney's test of a mean as well."
    )


class DraftSerializer(StrictSerializer):
    """What of a draft may be changed; what is left out stays, or has its default."""

    metric = serializers.CharField(
        max_length=NAME_MAX, required=False, help_text="Short for one primary metric in `metrics`."
    )
    metrics = MetricChoiceSerializer(many=True, required=False)
    variants = VariantInputSerializer(many=True, required=False)
    hypothesis = serializers.CharField(allow_blank=True, required=False, max_length=10_000)
    coverage_bp = serializers.IntegerField(
        required=False, help_text="Share of units that take part, in basis points (10,000)."
    )
    planned_units = serializers.IntegerField(
        required=False, help_text="Planned number of units, all variants together (10,000)."
    )
    alpha_ppm = serializers.IntegerField(
        required=False, help_text="Chance of a false verdict in millionths: 50,000 is 5 %."
    )
    tenants = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Who is meant; none named: all."
    )
    headers = serializers.DictField(
        child=serializers.ListField(child=serializers.CharField(trim_whitespace=False)),
        required=False,
        help_text="Values that a request carries in each of these headers to take part.",
    )
    holdout_bp = serializers.IntegerField(
        required=False,
        help_text="Share of units that get stable in every experiment of the model.",
    )
    dimensions = serializers.ListField(
        child=serializers.CharField(),
        required=False,
        help_text="`tenant` or headers that results are broken down by; at most 5.",
    )
    stratify_by = serializers.CharField(
        required=False, allow_blank=True, help_text="The dimension to post-stratify by."
    )
    covariate_s = serializers.IntegerField(
        required=False,
        help_text="CUPED's covariate is a unit's value in so many seconds before; 0: none.",
    )

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        if "metric" in given and "metrics" in given:
            raise serializers.ValidationError({"metric": "Give metric or metrics, not both."})
        return given


class ExperimentInputSerializer(DraftSerializer):
    name = serializers.CharField(max_length=NAME_MAX)
    model = serializers.CharField(max_length=NAME_MAX)
    variants = VariantInputSerializer(many=True)

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        if "metric" not in given and "metrics" not in given:
            raise serializers.ValidationError({"metrics": "This field is required."})
        return super().validate(given)


class ExperimentEditSerializer(DraftSerializer):
    revision = serializers.IntegerField(
        required=False, help_text="What you saw; refused when it changed meanwhile."
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
    metric = serializers.CharField(source="metric.name", help_text="The primary one.")
    metrics = MetricUseSerializer(source="metric_uses", many=True)
    hypothesis = serializers.CharField()
    state = serializers.CharField(
        help_text="`draft`, `preparing`, `running`, `paused`, `completed` or `failed`."
    )
    conclusion = serializers.CharField(
        help_text="How a completed one ended: `stopped`, `shipped` or `abandoned`."
    )
    rollout = serializers.UUIDField(
        source="rollout_id", allow_null=True, help_text="What a shipped one became."
    )
    reason = serializers.CharField(help_text="Why it stands where it stands.")
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
        required=False, help_text="What you saw; refused when it changed meanwhile."
    )
    reason = serializers.CharField(required=False, allow_blank=True, max_length=1_000)


class RefreshSerializer(StrictSerializer):
    """It takes nothing."""


class WeightsSerializer(MoveSerializer):
    weights_bp = serializers.DictField(
        child=serializers.IntegerField(),
        help_text="{variant: basis points}; each variant has one, and they sum to 10,000.",
    )


class ShipSerializer(MoveSerializer):
    variant = serializers.CharField(
        required=False, allow_null=True, help_text="What to ship; by default the winner."
    )
    plan = serializers.CharField(
        required=False, allow_null=True, help_text="What the rollout follows; the default plan."
    )
    force = serializers.BooleanField(
        default=False, help_text="Ship what the result does not speak for; needs a reason."
    )
    overrides = serializers.ListField(
        child=serializers.CharField(), default=list, help_text="The rollout's overrides."
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
    result = serializers.JSONField(help_text="The result as it was then; it never changes.")


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
        allow_null=True, help_text="When the result was made; null before the first one."
    )
    refresh_error = serializers.CharField(
        help_text="Why the analysis after that gave none; the result is the last good one."
    )
    result = serializers.JSONField(
        help_text="Verdict, sample ratio, arms, comparisons, weight phases, data quality; empty "
        "before the first."
    )


class PowerInputSerializer(StrictSerializer):
    """What is asked of a plan; a baseline is looked up where it is left out."""

    effect = serializers.FloatField(
        required=False, help_text="The difference to find, in the metric's own unit."
    )
    relative = serializers.FloatField(
        required=False, help_text="The same relative to the baseline; 0.05 unless told."
    )
    power = serializers.FloatField(default=POWER, help_text="The chance to find it.")
    mean = serializers.FloatField(required=False, help_text="The baseline's mean or rate.")
    sd = serializers.FloatField(required=False, help_text="The spread of units' values.")


class PowerSerializer(serializers.Serializer[Any]):
    """A plan: units, days and detectable effects; null where nothing can be said."""

    metric = serializers.CharField()
    alpha = serializers.FloatField()
    level = serializers.FloatField(help_text="What one reading of one treatment is read at.")
    power = serializers.FloatField()
    planned_units = serializers.IntegerField()
    traffic = serializers.JSONField(help_text="units_a_day, growth, hours, told")
    baseline = serializers.JSONField(help_text="mean, sd, skewness, source; null if unknown")
    reason = serializers.CharField(help_text="Why there are no sizes.")
    note = serializers.CharField(
        required=False, help_text="What skewed values ask for, where they ask for much."
    )
    guardrails = serializers.JSONField(help_text="metric, margin, units, days, reason of each")
    effect = serializers.FloatField(required=False)
    effect_relative = serializers.FloatField(required=False, allow_null=True)
    sizes = serializers.JSONField(
        required=False, help_text="reading, units, control_units, days: fixed-horizon, sequential"
    )
    planned = serializers.JSONField(
        required=False, help_text="What the planned units detect: units, fixed, sequential, days"
    )
    curve = serializers.JSONField(
        required=False, help_text="days, units, fixed, sequential: what is detectable by then"
    )


class OutcomeSerializer(serializers.Serializer[Any]):
    event_id = serializers.CharField(max_length=200)
    unit_id = serializers.CharField(
        max_length=200,
        required=False,
        allow_null=True,
        allow_blank=True,
        help_text="May be left out where request_id is given.",
    )
    metric = serializers.CharField(max_length=NAME_MAX)
    value = serializers.FloatField()
    occurred_at = serializers.DateTimeField(
        required=False, help_text="With a time zone; now, when it is left out."
    )
    request_id = serializers.CharField(
        max_length=REQUEST_ID_LENGTH_MAX,
        required=False,
        allow_null=True,
        allow_blank=True,
        help_text="The x-interlock-request-id of the prediction that it is about.",
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
            "sender": {"help_text": "A tenant or a user; empty where nobody knows."},
            "via": {"help_text": "The data-plane instance, `REST API` or `file`."},
        }


class OutcomeReportSerializer(serializers.Serializer[Any]):
    recorded = serializers.IntegerField()
    duplicates = serializers.IntegerField(help_text="Their `event_id` was known already.")
    refused = RefusedOutcomeSerializer(many=True)
    strangers = serializers.ListField(
        child=serializers.IntegerField(),
        help_text="Positions of those whose unit met no experiment that goes on. They are kept, "
        "and count once it meets one.",
    )
