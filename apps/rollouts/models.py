"""Plans, rollouts and what decided them; the published routing tables and who applied them."""

from __future__ import annotations

import uuid

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from apps.lib.transitions import Transition
from apps.models.models import ModelVersion, RegisteredModel, valid_name
from apps.rollouts.states import LIVE_PHASES, Phase
from apps.rollouts.verdicts import Verdict

share_bp = [MinValueValidator(0), MaxValueValidator(10_000)]


class Plan(models.Model):
    """A reusable ordered list of steps; `time_scale_permille` shortens every bake (1000: real)."""

    name = models.CharField(max_length=100, unique=True, validators=[valid_name])
    description = models.TextField(blank=True)
    is_default = models.BooleanField(default=False)
    time_scale_permille = models.PositiveIntegerField(default=1_000)
    # One check interval: evidence is kept per interval, checks run at the end of each.
    interval_s = models.PositiveIntegerField(default=10)
    # A step that cannot be decided goes on for so many bake times, then pauses for a person.
    extend_max = models.PositiveIntegerField(default=3)
    margin_bp = models.PositiveIntegerField(default=100)
    alpha_ppm = models.PositiveIntegerField(default=10_000)
    reference_requests_min = models.PositiveIntegerField(default=5_000)
    # Slower by less than this is nobody's concern: it is added to stable's quantiles.
    latency_slack_us = models.PositiveIntegerField(default=1_000)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(
                fields=["is_default"],
                condition=models.Q(is_default=True),
                name="one_default_plan",
            ),
            models.CheckConstraint(
                condition=models.Q(interval_s__gte=1, extend_max__gte=1, alpha_ppm__gte=1),
                name="plan_positive_settings",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class PlanStep(models.Model):
    plan = models.ForeignKey(Plan, on_delete=models.CASCADE, related_name="steps")
    position = models.PositiveSmallIntegerField()
    weight_bp = models.PositiveIntegerField(validators=share_bp)
    bake_s = models.PositiveIntegerField(default=1_800)
    requests_min = models.PositiveIntegerField(default=0)
    # Names of checks: see apps.rollouts.analysis.CHECKS.
    checks = models.JSONField(default=list)

    class Meta:
        ordering = ["plan", "position"]
        constraints = [
            models.UniqueConstraint(fields=["plan", "position"], name="step_position_once"),
            models.CheckConstraint(
                condition=models.Q(weight_bp__gte=1, weight_bp__lte=10_000),
                name="step_weight_in_range",
            ),
        ]


class Rollout(models.Model):
    """One attempt to make `target` the stable version of `model`."""

    class Kind(models.TextChoices):
        CANARY = "canary"
        # The model has no stable version yet: nothing to compare with.
        FIRST = "first"
        # Back to an earlier version at once, without steps.
        ROLLBACK = "rollback"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=20, choices=Kind.choices, default=Kind.CANARY)
    model = models.ForeignKey(RegisteredModel, on_delete=models.PROTECT, related_name="rollouts")
    target = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="rollouts")
    # Stable when it started; None for a model's first version.
    baseline = models.ForeignKey(
        ModelVersion, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    plan = models.ForeignKey(Plan, null=True, on_delete=models.SET_NULL, related_name="rollouts")
    # The plan as it was when the rollout started: editing a plan changes no running rollout.
    plan_document = models.JSONField(default=dict)
    phase = models.CharField(max_length=20, choices=Phase.choices, default=Phase.PENDING)
    revision = models.PositiveIntegerField(default=0)
    salt = models.CharField(max_length=64)
    step_index = models.SmallIntegerField(default=-1)
    weight_bp = models.PositiveIntegerField(default=0, validators=share_bp)
    # The first generation of each step: windows belong to a step by their generation.
    step_generations = models.JSONField(default=list)
    # The generation that every live instance must ack before the phase goes on.
    generation = models.BigIntegerField(null=True)
    # Bake clock: None until all live instances acked.
    step_started_at = models.DateTimeField(null=True)
    step_due_at = models.DateTimeField(null=True)
    step_limit_at = models.DateTimeField(null=True)
    next_check_at = models.DateTimeField(null=True)
    # Frozen quantiles of stable's latency: {"p50": index, "p95": …, "p99": …, "n", "frozen_at_ms"}.
    latency_reference = models.JSONField(default=dict)
    # Why it stands where it stands, with numbers; on the page and in the API.
    reason = models.TextField(blank=True)
    started_by = models.CharField(max_length=150)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-started_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["model"],
                condition=models.Q(phase__in=sorted(LIVE_PHASES)),
                name="one_live_rollout_per_model",
            )
        ]
        indexes = [models.Index(fields=["phase"])]

    @property
    def is_live(self) -> bool:
        return self.phase in LIVE_PHASES


class RolloutEvent(Transition):
    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="events")
    step_index = models.SmallIntegerField()
    weight_bp = models.PositiveIntegerField()
    generation = models.BigIntegerField(null=True)


class Evaluation(models.Model):
    """One check answered once: the inputs, the verdict, the numbers. The decision log."""

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="evaluations")
    step_index = models.SmallIntegerField()
    check_name = models.CharField(max_length=50)
    verdict = models.CharField(max_length=30, choices=[(v.value, v.value) for v in Verdict])
    reason = models.TextField()
    evidence = models.JSONField(default=dict)
    at = models.DateTimeField()

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["rollout", "check_name", "id"])]


class PublishedTable(models.Model):
    """A routing table as it was published; `generation` only grows."""

    generation = models.BigIntegerField(primary_key=True)
    digest = models.CharField(max_length=64)
    document = models.BinaryField()
    reason = models.TextField()
    actor = models.CharField(max_length=150)
    published_at = models.DateTimeField()

    class Meta:
        ordering = ["-generation"]


class Instance(models.Model):
    """A data-plane instance and what it last reported. Live is a question of `reported_at`."""

    name = models.CharField(max_length=200, primary_key=True)
    boot = models.CharField(max_length=64)
    applied_generation = models.BigIntegerField(default=0)
    refused_generation = models.BigIntegerField(null=True)
    refusal = models.TextField(blank=True)
    dropped = models.JSONField(default=dict)
    is_stopping = models.BooleanField(default=False)
    # Models that its operator pinned to stable there, `*` for all: their splits have no effect.
    pinned = models.JSONField(default=list, db_default=[])
    reported_at = models.DateTimeField()

    class Meta:
        ordering = ["name"]


class BreakerTripRecord(models.Model):
    """A version's breaker opened on an instance; `count` is since that instance's boot.

    The instants are those of the database's clock.
    """

    instance = models.CharField(max_length=200)
    boot = models.CharField(max_length=64)
    model_name = models.CharField(max_length=100)
    version_number = models.CharField(max_length=20)
    generation = models.BigIntegerField()
    count = models.PositiveIntegerField()
    reason = models.TextField(blank=True)
    # When it was first heard of.
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["instance", "boot", "model_name", "version_number", "generation"],
                name="breaker_trip_once",
            )
        ]


class TelemetryRow(models.Model):
    """A telemetry window as it arrived; the contract's TelemetryWindow tells what is counted."""

    instance = models.CharField(max_length=200)
    model_name = models.CharField(max_length=100)
    version_number = models.CharField(max_length=20)
    variant = models.CharField(max_length=100)
    split = models.CharField(max_length=64, blank=True)
    generation = models.BigIntegerField()
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField()
    interval_started_at = models.DateTimeField()
    requests = models.PositiveIntegerField()
    errors = models.PositiveIntegerField()
    fallbacks = models.PositiveIntegerField()
    units = models.PositiveIntegerField()
    unit_errors = models.PositiveIntegerField()
    anonymous = models.PositiveIntegerField()
    anonymous_errors = models.PositiveIntegerField()
    cache_hits = models.PositiveIntegerField(default=0, db_default=0)
    latency = models.JSONField(default=dict)

    class Meta:
        indexes = [
            models.Index(fields=["split", "generation"]),
            models.Index(fields=["model_name", "ended_at"]),
            models.Index(fields=["ended_at"]),
        ]


class ShadowRow(models.Model):
    """A shadow window as it arrived; the contract's ShadowWindow tells what is counted."""

    instance = models.CharField(max_length=200)
    model_name = models.CharField(max_length=100)
    version_number = models.CharField(max_length=20)
    stable_number = models.CharField(max_length=20)
    shadow = models.CharField(max_length=64)
    generation = models.BigIntegerField()
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField()
    compared = models.PositiveIntegerField()
    rows = models.PositiveIntegerField()
    flips = models.PositiveIntegerField()
    beyond_tolerance = models.PositiveIntegerField()
    largest_difference = models.FloatField()
    rank_correlation_sum = models.FloatField()
    ranked = models.PositiveIntegerField()
    errors = models.PositiveIntegerField()
    dropped = models.PositiveIntegerField()
    latency = models.JSONField(default=dict)

    class Meta:
        indexes = [
            models.Index(fields=["shadow", "generation"]),
            models.Index(fields=["model_name", "ended_at"]),
            models.Index(fields=["ended_at"]),
        ]


class IngestedBatch(models.Model):
    """A batch that was applied: its unique key makes a second delivery a no-op."""

    stream = models.CharField(max_length=50)
    instance = models.CharField(max_length=200)
    boot = models.CharField(max_length=64)
    sequence = models.BigIntegerField()
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["stream", "instance", "boot", "sequence"], name="batch_applied_once"
            )
        ]
        indexes = [models.Index(fields=["at"])]
