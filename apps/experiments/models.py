"""Experiments, their variants and metrics, and what was seen: exposures and outcomes."""

from __future__ import annotations

import uuid

from django.db import models

from apps.experiments.states import ExperimentState
from apps.lib.transitions import Transition
from apps.models.models import ModelVersion, RegisteredModel, valid_name
from apps.rollouts.models import Rollout


class Metric(models.Model):
    """What is measured for a unit; defined once, used by many experiments."""

    class Kind(models.TextChoices):
        PROPORTION = "proportion"
        MEAN = "mean"

    class Direction(models.TextChoices):
        INCREASE = "increase"
        DECREASE = "decrease"

    name = models.CharField(max_length=100, unique=True, validators=[valid_name])
    kind = models.CharField(max_length=20, choices=Kind.choices)
    direction = models.CharField(
        max_length=20, choices=Direction.choices, default=Direction.INCREASE
    )
    description = models.TextField(blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Experiment(models.Model):
    """A comparison of versions of one model on a metric."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=100, unique=True, validators=[valid_name])
    hypothesis = models.TextField(blank=True)
    model = models.ForeignKey(RegisteredModel, on_delete=models.PROTECT, related_name="experiments")
    metric = models.ForeignKey(Metric, on_delete=models.PROTECT, related_name="experiments")
    state = models.CharField(
        max_length=20, choices=ExperimentState.choices, default=ExperimentState.DRAFT
    )
    revision = models.PositiveIntegerField(default=0)
    coverage_bp = models.PositiveIntegerField(default=10_000)
    inclusion_salt = models.CharField(max_length=64)
    variant_salt = models.CharField(max_length=64)
    alpha_ppm = models.PositiveIntegerField(default=50_000)
    # Units per experiment, all variants together, that were planned for; tunes the interval.
    planned_units = models.PositiveIntegerField(default=10_000)
    generation = models.BigIntegerField(null=True)
    reason = models.TextField(blank=True)
    # The last analysis (stats.results); frozen when the experiment is completed.
    result = models.JSONField(default=dict)
    refreshed_at = models.DateTimeField(null=True)
    # Why the last analysis gave no result; the one before it stands meanwhile.
    refresh_error = models.TextField(blank=True)
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(coverage_bp__gte=1, coverage_bp__lte=10_000),
                name="coverage_in_range",
            )
        ]

    def __str__(self) -> str:
        return self.name


class Variant(models.Model):
    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="variants")
    name = models.CharField(max_length=100, validators=[valid_name])
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    weight_bp = models.PositiveIntegerField()
    is_control = models.BooleanField(default=False)
    position = models.PositiveSmallIntegerField()

    class Meta:
        ordering = ["experiment", "position"]
        constraints = [
            models.UniqueConstraint(fields=["experiment", "name"], name="variant_name_once"),
            models.UniqueConstraint(
                fields=["experiment"],
                condition=models.Q(is_control=True),
                name="one_control_per_experiment",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class ExperimentEvent(Transition):
    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="events")


class ExposureRow(models.Model):
    """The first time a unit met a variant of an experiment."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="exposures")
    unit = models.CharField(max_length=200)
    variant_name = models.CharField(max_length=100)
    version_number = models.CharField(max_length=20)
    at = models.DateTimeField()
    # Met another variant later (a weight was changed): left out of the analysis, and counted.
    crossed_over = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["experiment", "unit"], name="exposure_once_per_unit")
        ]


class RolloutExposure(models.Model):
    """When a unit first met each side of a rollout's split; kept where a plan asks for outcomes."""

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="exposures")
    unit = models.CharField(max_length=200)
    # Where the unit stands under the rollout's salt: the canary's are those below its weight.
    bucket = models.PositiveSmallIntegerField()
    canary_at = models.DateTimeField(null=True)
    control_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["rollout", "unit"], name="rollout_exposure_once_per_unit"
            )
        ]


class OutcomeRow(models.Model):
    """A measured result for a unit; `event_id` makes a repeated one count once."""

    event_id = models.CharField(max_length=200, unique=True)
    unit = models.CharField(max_length=200)
    metric = models.ForeignKey(Metric, on_delete=models.PROTECT, related_name="outcomes")
    value = models.FloatField()
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["metric", "unit", "occurred_at"])]


class RefusedOutcomes(models.Model):
    """How many outcomes were refused at ingestion, by metric name and reason."""

    metric_name = models.CharField(max_length=100)
    reason = models.CharField(max_length=200)
    count = models.PositiveBigIntegerField(default=0)
    last_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "refused outcomes"
        constraints = [
            models.UniqueConstraint(fields=["metric_name", "reason"], name="refused_outcomes_once")
        ]
