"""Tables of plans, rollouts, evaluations, rules, data-plane instances and telemetry."""

from __future__ import annotations

import uuid

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from apps.lib.transitions import Transition
from apps.models.models import ModelVersion, RegisteredModel, Role, valid_name
from apps.rollouts.reasons import HEADLINE_MAX, detail_of
from apps.rollouts.states import LIVE_PHASES, Phase
from apps.rollouts.table_models import ClusterOrigin as ClusterOrigin
from apps.rollouts.table_models import Epoch as Epoch
from apps.rollouts.table_models import PublishedTable as PublishedTable
from apps.rollouts.table_models import ServingChange as ServingChange
from apps.rollouts.verdicts import Verdict

share_bp = [MinValueValidator(0), MaxValueValidator(10_000)]


class Control(models.TextChoices):
    """The control that a canary is compared with."""

    # All traffic that stable answers at the same time.
    ALL = "all"
    # A slice of the units of stable, as large as the canary, counted separately.
    EQUAL = "equal"


class Gate(models.TextChoices):
    """Who lets a step pass after its checks have passed."""

    AUTOMATIC = "automatic"
    PERSON = "person"


class Plan(models.Model):
    """A reusable ordered list of steps; `time_scale_permille` scales all bake times (1000: 1)."""

    name = models.CharField(max_length=100, unique=True, validators=[valid_name])
    description = models.TextField(blank=True)
    is_default = models.BooleanField(default=False)
    time_scale_permille = models.PositiveIntegerField(default=1_000)
    # One check interval: evidence is kept per interval, checks run at the end of each.
    interval_s = models.PositiveIntegerField(default=10)
    # An undecided step pauses for a person after this number of bake times.
    extend_max = models.PositiveIntegerField(default=3)
    # A step without enough data pauses after this time, if that is longer.
    wait_max_s = models.PositiveIntegerField(default=604_800)
    margin_bp = models.PositiveIntegerField(default=100)
    alpha_ppm = models.PositiveIntegerField(default=10_000)
    reference_requests_min = models.PositiveIntegerField(default=5_000)
    # The tolerated slowdown: it is added to the quantiles of stable.
    latency_slack_us = models.PositiveIntegerField(default=1_000)
    # `any_regression` or `beyond_margin`: see apps.rollouts.checks.CheckSettings.
    evidence_mode = models.CharField(max_length=20, default="any_regression")
    control = models.CharField(max_length=10, choices=Control.choices, default=Control.ALL)
    # This share stays on the previous version until the final bake is over.
    holdback_bp = models.PositiveIntegerField(default=0)
    # The bake time after the last step; 0: none.
    final_bake_s = models.PositiveIntegerField(default=0)
    # How long the previous version stays loaded after a promotion.
    rollback_window_s = models.PositiveIntegerField(default=86_400)

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
    # The share of the requests of stable that is copied to the target.
    shadow_bp = models.PositiveIntegerField(default=0, validators=share_bp)
    requests_min = models.PositiveIntegerField(default=0)
    # Names of checks, or documents with their settings: see apps.rollouts.check_kinds.
    checks = models.JSONField(default=list)
    gate = models.CharField(max_length=20, choices=Gate.choices, default=Gate.AUTOMATIC)
    # The role that may open a gate for a person.
    gate_role = models.CharField(max_length=20, choices=Role.choices, default=Role.OPERATOR)

    class Meta:
        ordering = ["plan", "position"]
        constraints = [
            models.UniqueConstraint(fields=["plan", "position"], name="step_position_once"),
            models.CheckConstraint(
                condition=models.Q(weight_bp__lte=10_000, shadow_bp__lte=10_000),
                name="step_shares_in_range",
            ),
        ]


class Release(models.Model):
    """Rollouts of several models that advance together or not at all."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=100, validators=[valid_name])
    plan_name = models.CharField(max_length=100)
    started_by = models.CharField(max_length=150)
    started_at = models.DateTimeField()

    class Meta:
        ordering = ["-started_at"]

    def __str__(self) -> str:
        return self.name


class Rollout(models.Model):
    """One attempt to make `target` the stable version of `model`."""

    class Kind(models.TextChoices):
        CANARY = "canary"
        # The model has no stable version yet: nothing to compare with.
        FIRST = "first"
        # To an earlier version at once, without steps.
        ROLLBACK = "rollback"
        # To a version with another signature: they cannot share traffic, so no steps.
        SWITCH = "switch"

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
    release = models.ForeignKey(
        Release, null=True, blank=True, on_delete=models.PROTECT, related_name="rollouts"
    )
    # The rollout that this one retries.
    retry_of = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL)
    # The rules overridden at the start: see apps.rollouts.overrides.Override.
    overrides = models.JSONField(default=list)
    salt = models.CharField(max_length=64)
    step_index = models.SmallIntegerField(default=-1)
    weight_bp = models.PositiveIntegerField(default=0, validators=share_bp)
    # The first generation of each step: windows belong to a step by their generation.
    step_generations = models.JSONField(default=list)
    # The generation that every live instance must ack before the phase goes on.
    generation = models.BigIntegerField(null=True)
    # The bake clock: None until all live instances have acked.
    step_started_at = models.DateTimeField(null=True)
    step_due_at = models.DateTimeField(null=True)
    step_limit_at = models.DateTimeField(null=True)
    next_check_at = models.DateTimeField(null=True)
    # The scope of its freeze override: see apps.rollouts.overrides.uncovered.
    freeze_override_role = models.CharField(max_length=20, blank=True, default="", db_default="")
    lacks_reason = models.BooleanField(default=False, db_default=False)
    # The step whose gate was approved, and by whom.
    approved_step = models.SmallIntegerField(null=True)
    approved_by = models.CharField(max_length=150, blank=True)
    # In a release: when this step passed; it waits for the other models since then.
    step_passed_at = models.DateTimeField(null=True)
    # Frozen quantiles of stable's latency: {"p50": index, "p95": …, "p99": …, "n", "frozen_at_ms"}.
    latency_reference = models.JSONField(default=dict)
    # The dispersion of the errors of stable before the rollout: see
    # apps.rollouts.baseline_dispersion. Empty until read.
    stable_spread = models.JSONField(default=dict, db_default={})
    # The revision at which the last notification of a stall was sent.
    held_told_revision = models.PositiveIntegerField(null=True)
    # The reason of the current state, without statistics and with them: apps.rollouts.reasons.
    headline = models.CharField(max_length=HEADLINE_MAX, blank=True, db_default="")
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

    @property
    def detail(self) -> str:
        return detail_of(self.headline, self.reason)


class RolloutEvent(Transition):
    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="events")
    headline = models.CharField(max_length=HEADLINE_MAX, blank=True, db_default="")
    step_index = models.SmallIntegerField()
    weight_bp = models.PositiveIntegerField()
    generation = models.BigIntegerField(null=True)

    @property
    def detail(self) -> str:
        return detail_of(self.headline, self.reason)


class Evaluation(models.Model):
    """One result of one check: inputs, verdict and evidence. The decision log."""

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="evaluations")
    step_index = models.SmallIntegerField()
    check_name = models.CharField(max_length=100)
    verdict = models.CharField(max_length=30, choices=[(v.value, v.value) for v in Verdict])
    reason = models.TextField()
    evidence = models.JSONField(default=dict)
    # All inputs of the result besides the frozen intervals.
    inputs = models.JSONField(default=dict)
    # The rule that was applied to the verdict.
    rule = models.CharField(max_length=200, blank=True)
    at = models.DateTimeField()

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["rollout", "check_name", "id"])]


class ObservedInterval(models.Model):
    """The counts of one check interval of one step, frozen when it closed.

    Checks read only these rows, so that late windows change no past evidence. `canary` and
    `control` hold `n`, `errors`, `requests` and the sparse histogram `latency`: see
    apps.rollouts.evidence.Arm.
    """

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="intervals")
    # In the order of freezing, from 0: an evaluation stores the number of intervals that it used.
    ordinal = models.PositiveIntegerField()
    step_index = models.SmallIntegerField()
    started_at = models.DateTimeField()
    canary = models.JSONField(default=dict)
    control = models.JSONField(default=dict)

    class Meta:
        ordering = ["rollout", "ordinal"]
        constraints = [
            models.UniqueConstraint(fields=["rollout", "ordinal"], name="interval_ordinal_once"),
            models.UniqueConstraint(
                fields=["rollout", "step_index", "started_at"], name="interval_frozen_once"
            ),
        ]


class Quarantine(models.Model):
    """A version that was rolled back: a new rollout of it needs an explicit override."""

    version = models.OneToOneField(
        ModelVersion, on_delete=models.CASCADE, primary_key=True, related_name="quarantine"
    )
    rollout = models.ForeignKey(Rollout, null=True, on_delete=models.SET_NULL)
    reason = models.TextField()
    at = models.DateTimeField()

    class Meta:
        ordering = ["-at"]


class FreezeWindow(models.Model):
    """A time in which no rollout starts or advances; a rollback is always possible."""

    # None: all models.
    model = models.ForeignKey(
        RegisteredModel, null=True, blank=True, on_delete=models.CASCADE, related_name="freezes"
    )
    reason = models.CharField(max_length=500)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    # It recurs each week at the same local time of the time zone, an IANA name.
    is_weekly = models.BooleanField(default=False)
    time_zone = models.CharField(max_length=64, default="UTC", db_default="UTC")
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField()

    class Meta:
        ordering = ["starts_at"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(ends_at__gt=models.F("starts_at")),
                name="freeze_ends_after_start",
            )
        ]


class RolloutPolicy(models.Model):
    """The policy of all rollouts: a single row, enforced by the primary key."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    # The maximum number of concurrent rollouts; None: no limit.
    concurrent_max = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)]
    )

    class Meta:
        verbose_name_plural = "rollout policy"
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="one_rollout_policy")]

    def __str__(self) -> str:
        return "rollout policy"


class Instance(models.Model):
    """The last report of a data-plane instance. `reported_at` tells whether it is live."""

    name = models.CharField(max_length=200, primary_key=True)
    boot = models.CharField(max_length=64)
    applied_generation = models.BigIntegerField(default=0)
    # It serves a table that this database did not publish: see apps.rollouts.epochs.
    serves_unknown = models.BooleanField(default=False, db_default=False)
    refused_generation = models.BigIntegerField(null=True)
    refusal = models.TextField(blank=True)
    dropped = models.JSONField(default=dict)
    is_stopping = models.BooleanField(default=False)
    # Models that its operator pinned to stable, `*` for all: their splits have no effect there.
    pinned = models.JSONField(default=list, db_default=[])
    reported_at = models.DateTimeField()

    class Meta:
        ordering = ["name"]


class BreakerTripRecord(models.Model):
    """The breaker of a version opened on an instance; `count` is since the boot of the instance.

    Times are of the database clock.
    """

    instance = models.CharField(max_length=200)
    boot = models.CharField(max_length=64)
    model_name = models.CharField(max_length=100)
    version_number = models.CharField(max_length=20)
    generation = models.BigIntegerField()
    count = models.PositiveIntegerField()
    reason = models.TextField(blank=True)
    # When the first report of it arrived.
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
    """A stored telemetry window; contract.messages.TelemetryWindow defines the counts."""

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
    assigned = models.PositiveIntegerField(default=0, db_default=0)
    unanswered = models.PositiveIntegerField(default=0, db_default=0)
    assigned_requests = models.PositiveIntegerField(default=0, db_default=0)
    # Counts by the names of request ends in the contract; zero counts are left out.
    ends = models.JSONField(default=dict, db_default={})
    # By cluster number: [units, assigned, unanswered, n, errors, latency].
    clusters = models.JSONField(default=dict, db_default={})
    latency = models.JSONField(default=dict)

    class Meta:
        indexes = [
            models.Index(fields=["split", "generation"]),
            models.Index(fields=["model_name", "ended_at"]),
            models.Index(fields=["ended_at"]),
        ]


class ShadowRow(models.Model):
    """A stored shadow window; contract.messages.ShadowWindow defines the counts."""

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


class TrafficAlarm(models.Model):
    """Traffic on an instance that contradicts its routing table or is not accounted for."""

    class Kind(models.TextChoices):
        # A version whose share is 0 got requests.
        LEAK = "leak"
        # The observed split differs from the configured one.
        DIVERGENCE = "divergence"
        # Assigned requests have not ended, or more requests ended than were assigned.
        ENDS = "ends"

    kind = models.CharField(max_length=20, choices=Kind.choices)
    instance = models.CharField(max_length=200)
    model_name = models.CharField(max_length=100)
    version_number = models.CharField(max_length=20)
    generation = models.BigIntegerField()
    reason = models.TextField()
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()

    class Meta:
        ordering = ["-last_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "instance", "model_name", "version_number", "generation"],
                name="traffic_alarm_once",
            )
        ]
        indexes = [models.Index(fields=["model_name", "-last_at"])]


class IngestedBatch(models.Model):
    """An ingested batch: its unique key makes a second delivery a no-op."""

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
