"""What the REST API of experiments takes and gives."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.experiments.models import Experiment, Metric

NAME_MAX = 100


class MetricSerializer(serializers.Serializer[Metric]):
    name = serializers.CharField(max_length=NAME_MAX)
    kind = serializers.ChoiceField(
        choices=Metric.Kind.choices,
        help_text="`proportion`: a unit's outcomes are 0 or 1, the first one counts. "
        "`mean`: a unit's value is the mean of its outcomes.",
    )
    direction = serializers.ChoiceField(
        choices=Metric.Direction.choices,
        default=Metric.Direction.INCREASE.value,
        help_text="Which way is better.",
    )
    description = serializers.CharField(allow_blank=True, default="")


class VariantInputSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=NAME_MAX)
    version = serializers.IntegerField(min_value=1, help_text="Number of the model's version.")
    weight_bp = serializers.IntegerField(
        help_text="Share of the included units in basis points; all sum to 10,000."
    )
    is_control = serializers.BooleanField(default=False, help_text="Exactly one is the control.")


class ExperimentInputSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=NAME_MAX)
    model = serializers.CharField(max_length=NAME_MAX)
    metric = serializers.CharField(max_length=NAME_MAX)
    hypothesis = serializers.CharField(allow_blank=True, default="")
    variants = VariantInputSerializer(many=True)
    coverage_bp = serializers.IntegerField(
        default=10_000, help_text="Share of units that take part, in basis points."
    )
    planned_units = serializers.IntegerField(
        default=10_000, help_text="Planned number of units, all variants together."
    )
    alpha_ppm = serializers.IntegerField(
        default=50_000, help_text="Chance of a false verdict in millionths: 50,000 is 5 %."
    )


class VariantSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    version = serializers.IntegerField(source="version.number")
    weight_bp = serializers.IntegerField()
    is_control = serializers.BooleanField()


class ExperimentSerializer(serializers.Serializer[Experiment]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    model = serializers.CharField(source="model.name")
    metric = serializers.CharField(source="metric.name")
    hypothesis = serializers.CharField()
    state = serializers.CharField(
        help_text="`draft`, `preparing`, `running`, `completed` or `failed`."
    )
    reason = serializers.CharField(help_text="Why it stands where it stands.")
    revision = serializers.IntegerField()
    coverage_bp = serializers.IntegerField()
    planned_units = serializers.IntegerField()
    alpha_ppm = serializers.IntegerField()
    generation = serializers.IntegerField(allow_null=True)
    variants = VariantSerializer(many=True)
    created_by = serializers.CharField()
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True)
    refreshed_at = serializers.DateTimeField(allow_null=True)


class ExperimentStartSerializer(serializers.Serializer[Any]):
    revision = serializers.IntegerField(
        required=False, help_text="What you saw; refused when it changed meanwhile."
    )


class ExperimentStopSerializer(ExperimentStartSerializer):
    reason = serializers.CharField(required=False, allow_blank=True, max_length=1_000)


class ResultSerializer(serializers.Serializer[Experiment]):
    name = serializers.CharField()
    state = serializers.CharField()
    refreshed_at = serializers.DateTimeField(
        allow_null=True, help_text="When the result was made; null before the first one."
    )
    refresh_error = serializers.CharField(
        help_text="Why the analysis after that gave none; the result is the last good one."
    )
    result = serializers.JSONField(
        help_text="Verdict, sample ratio, arms, comparisons, data quality; empty before the first."
    )


class OutcomeSerializer(serializers.Serializer[Any]):
    event_id = serializers.CharField(max_length=200)
    unit_id = serializers.CharField(max_length=200)
    metric = serializers.CharField(max_length=NAME_MAX)
    value = serializers.FloatField()
    occurred_at = serializers.DateTimeField(
        required=False, help_text="With a time zone; now, when it is left out."
    )


class OutcomeBatchSerializer(serializers.Serializer[Any]):
    outcomes = OutcomeSerializer(many=True)


class RefusedOutcomeSerializer(serializers.Serializer[Any]):
    index = serializers.IntegerField(help_text="Position in the batch, from 0.")
    event_id = serializers.CharField(allow_blank=True)
    reason = serializers.CharField()


class OutcomeReportSerializer(serializers.Serializer[Any]):
    recorded = serializers.IntegerField()
    duplicates = serializers.IntegerField(help_text="Their `event_id` was known already.")
    refused = RefusedOutcomeSerializer(many=True)
