"""Tables of experiments, their variants and metrics, exposures, outcomes and results."""

from __future__ import annotations

import uuid

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import BrinIndex
from django.db import models

# Django discovers models in this module.
from apps.experiments.rollout_models import RolloutExposure as RolloutExposure
from apps.experiments.rollout_models import ShadowPairRow as ShadowPairRow
from apps.experiments.states import ExperimentState
from apps.lib.transitions import Transition
from apps.models.models import ModelVersion, RegisteredModel, valid_name
from apps.rollouts.models import Rollout


class Metric(models.Model):
    """A quantity measured per unit; defined once, used by many experiments, never changed.

    A unit's value is computed from its outcomes since its exposure, or from the data plane's
    measurements.
    """

    class Kind(models.TextChoices):
        PROPORTION = "proportion"
        MEAN = "mean"
        RATIO = "ratio"
        QUANTILE = "quantile"

    class Direction(models.TextChoices):
        INCREASE = "increase"
        DECREASE = "decrease"

    class Source(models.TextChoices):
        """Origin of values: outcomes that clients send, or the data plane's measurements."""

        OUTCOMES = "outcomes"
        LATENCY = "latency", "latency (ms)"
        ERRORS = "errors"
        CACHE = "cache", "cache hits"

    class PerUnit(models.TextChoices):
        """How a unit's outcomes are combined into its value."""

        FIRST = "first"
        MEAN = "mean"
        SUM = "sum"
        MAX = "max"

    name = models.CharField(max_length=100, unique=True, validators=[valid_name])
    kind = models.CharField(max_length=20, choices=Kind.choices)
    direction = models.CharField(
        max_length=20, choices=Direction.choices, default=Direction.INCREASE
    )
    description = models.TextField(blank=True)
    source = models.CharField(max_length=20, choices=Source.choices, default=Source.OUTCOMES)
    # None: outcomes sent under its own name.
    outcomes_of = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    # For a ratio of outcomes: the metric whose sum per unit is the denominator.
    divided_by = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    per_unit = models.CharField(max_length=10, choices=PerUnit.choices, default=PerUnit.MEAN)
    # Whether a unit without an outcome counts as 0; otherwise it is excluded until it has one.
    missing_is_zero = models.BooleanField(default=False)
    # For a quantile: its level in millionths.
    quantile_ppm = models.PositiveIntegerField(null=True, blank=True)
    # Upper limit of a unit's value (winsorisation).
    cap = models.FloatField(null=True, blank=True)
    # Outcomes count for this long after the exposure; the unit counts after it. None: no limit.
    window_s = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Experiment(models.Model):
    """A comparison of versions of one model on metrics."""

    class Conclusion(models.TextChoices):
        STOPPED = "stopped"
        SHIPPED = "shipped"
        ABANDONED = "abandoned"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=100, unique=True, validators=[valid_name])
    hypothesis = models.TextField(blank=True)
    model = models.ForeignKey(RegisteredModel, on_delete=models.PROTECT, related_name="experiments")
    state = models.CharField(
        max_length=20, choices=ExperimentState.choices, default=ExperimentState.DRAFT
    )
    # How a completed experiment ended.
    conclusion = models.CharField(max_length=20, choices=Conclusion.choices, blank=True)
    # The rollout that a shipped experiment started.
    rollout = models.ForeignKey(
        Rollout, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    revision = models.PositiveIntegerField(default=0)
    coverage_bp = models.PositiveIntegerField(default=10_000)
    inclusion_salt = models.CharField(max_length=64)
    variant_salt = models.CharField(max_length=64)
    # Targeting: names of tenants (empty: all), and {header: [values]}.
    tenants = models.JSONField(default=list, blank=True)
    headers = models.JSONField(default=dict, blank=True)
    # Share of units that get stable in every experiment of the model.
    holdout_bp = models.PositiveIntegerField(default=0)
    # Dimensions of breakdowns: `tenant`, or names of headers.
    dimensions = models.JSONField(default=list, blank=True)
    # The dimension that estimates are post-stratified by.
    stratify_by = models.CharField(max_length=100, blank=True)
    # CUPED's covariate is the unit's value in this many seconds before its exposure; 0: none.
    covariate_s = models.PositiveIntegerField(default=0)
    alpha_ppm = models.PositiveIntegerField(default=50_000)
    # Planned number of units, all variants together; tunes the interval.
    planned_units = models.PositiveIntegerField(default=10_000)
    generation = models.BigIntegerField(null=True)
    reason = models.TextField(blank=True)
    # The last analysis (results); frozen when the experiment is completed.
    result = models.JSONField(default=dict)
    refreshed_at = models.DateTimeField(null=True)
    # Time of the next analysis. Large experiments wait longer, to leave the worker time for others.
    refresh_due_at = models.DateTimeField(null=True)
    # Error of the last analysis; `result` stays the last good one.
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

    @property
    def metric(self) -> Metric:
        """The primary metric."""
        return next(use.metric for use in self.metric_uses.all() if use.role == MetricUse.PRIMARY)


class MetricUse(models.Model):
    """A metric in an experiment, with its role."""

    PRIMARY, SECONDARY, GUARDRAIL = "primary", "secondary", "guardrail"
    ROLES = [(PRIMARY, "primary"), (SECONDARY, "secondary"), (GUARDRAIL, "guardrail")]

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="metric_uses")
    metric = models.ForeignKey(Metric, on_delete=models.PROTECT, related_name="uses")
    role = models.CharField(max_length=20, choices=ROLES)
    # For a guardrail: the tolerated loss, in the metric's unit.
    margin = models.FloatField(null=True, blank=True)
    # Whether the Mann-Whitney test is shown too.
    mann_whitney = models.BooleanField(default=False)
    # The primary metric has 0.
    position = models.PositiveSmallIntegerField()

    class Meta:
        ordering = ["experiment", "position"]
        constraints = [
            models.UniqueConstraint(fields=["experiment", "metric"], name="metric_use_once"),
            models.UniqueConstraint(
                fields=["experiment"],
                condition=models.Q(role="primary"),
                name="one_primary_per_experiment",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.metric} ({self.role})"


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


class WeightChange(models.Model):
    """The variants' weights from `at` on; the first row is written when the experiment runs.

    A unit whose bucket belongs to another variant in a later phase has moved; it is excluded from
    the analysis, whether or not it came back.
    """

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="weights")
    at = models.DateTimeField()
    # {variant: basis points}
    weights_bp = models.JSONField()
    reason = models.TextField(blank=True)
    actor = models.CharField(max_length=150)

    class Meta:
        ordering = ["experiment", "at"]


class ExperimentEvent(Transition):
    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="events")


class ExposureRow(models.Model):
    """First exposure of a unit to an experiment, and the unit's current values.

    Partitioned by `experiment`; the key is (experiment, unit). `id` exists only for Django and has
    no index.
    """

    # The key below begins with it; a separate index would only mislead the planner. Ingestion locks
    # the experiment once for many rows, where a constraint would look it up for each.
    experiment = models.ForeignKey(
        Experiment,
        on_delete=models.CASCADE,
        related_name="exposures",
        db_index=False,
        db_constraint=False,
    )
    unit = models.CharField(max_length=200)
    variant_name = models.CharField(max_length=100)
    version_number = models.CharField(max_length=20)
    at = models.DateTimeField()
    # The unit met another variant later (weights changed): excluded from the analysis, counted.
    crossed_over = models.BooleanField(default=False)
    # The unit's bucket under the experiment's variant salt.
    bucket = models.PositiveSmallIntegerField(default=0, db_default=0)
    tenant = models.CharField(max_length=100, default="", db_default="")
    # Other tenants that sent requests for the unit, empty text for requests without one; None: no
    # others.
    also_tenants = ArrayField(models.CharField(max_length=100), null=True)
    # {header: value} of the experiment's dimensions.
    attributes = models.JSONField(null=True)
    # One value per column of `apps.experiments.columns`; None where there is none yet.
    values = ArrayField(models.FloatField(null=True), null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["experiment", "unit"], name="exposure_once_per_unit")
        ]


class TouchedUnit(models.Model):
    """A unit whose values must be computed again, because new data of it arrived."""

    unit = models.CharField(max_length=200)


class MeasuredUnit(models.Model):
    """Measurements of a unit in an experiment by the data planes; see `UnitMeasurement`."""

    experiment = models.ForeignKey(
        Experiment, on_delete=models.CASCADE, related_name="+", db_index=False
    )
    unit = models.CharField(max_length=200)
    requests = models.BigIntegerField(default=0)
    errors = models.BigIntegerField(default=0)
    cache_hits = models.BigIntegerField(default=0)
    latency_us = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["experiment", "unit"], name="measured_once_per_unit")
        ]


class UnitCount(models.Model):
    """The units that sent requests to a model in an hour, as a sketch; see `UnitSketch`."""

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="+")
    hour = models.DateTimeField()
    # The smallest hashes, as signed 64-bit numbers.
    smallest = ArrayField(models.BigIntegerField())

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["model", "hour"], name="unit_count_once_an_hour")
        ]


class OutcomeRow(models.Model):
    """A measured result for a unit; a repeated `event_id` counts once.

    Event ids are unique per tenant: they begin with its name (`tenant_scope.event_key`).

    Partitioned by `event_id`: a unique key of a partitioned table must contain the partition key.
    """

    event_id = models.CharField(max_length=200, primary_key=True)
    unit = models.CharField(max_length=200)
    # Ingestion locks it, as an exposure's experiment.
    metric = models.ForeignKey(
        Metric,
        on_delete=models.PROTECT,
        related_name="outcomes",
        db_index=False,
        db_constraint=False,
    )
    value = models.FloatField()
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField(auto_now_add=True)
    # Hash of the id of its request; None without one.
    request_hash = models.BigIntegerField(null=True)
    # The sender: it counts for units that this tenant sent requests for; empty without a tenant.
    # None where a user of the control plane sent it: it counts for all units.
    tenant = models.CharField(max_length=100, null=True)  # noqa: DJ001 (see above)
    # Names of the models that the sender's key gives access to; None: all.
    models_opened = ArrayField(models.CharField(max_length=100), null=True)

    class Meta:
        indexes = [
            # The outcomes of all metrics of a unit are adjacent, so each partition is searched
            # once.
            models.Index(fields=["unit", "metric", "occurred_at"], name="outcome_by_unit"),
            BrinIndex(fields=["received_at"], name="outcome_by_arrival", autosummarize=True),
            # The only index for outcomes of requests without a unit.
            models.Index(
                fields=["request_hash"],
                condition=models.Q(unit="", request_hash__isnull=False),
                name="outcome_by_request",
            ),
        ]


class VersionOutcomes(models.Model):
    """Outcomes of a version's answers in an hour, from outcomes that name their request.

    `n` outcomes of the metric with the sum `total`; `hour` is the hour of the answers.
    """

    version = models.ForeignKey(
        ModelVersion, on_delete=models.CASCADE, related_name="+", db_index=False
    )
    metric = models.ForeignKey(Metric, on_delete=models.CASCADE, related_name="+")
    hour = models.DateTimeField()
    n = models.BigIntegerField()
    total = models.FloatField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["version", "metric", "hour"], name="version_outcomes_once_an_hour"
            )
        ]


class RefusedOutcomes(models.Model):
    """Number of refused outcomes. `sender` and `via` are empty if unknown."""

    metric_name = models.CharField(max_length=100)
    reason = models.CharField(max_length=200)
    sender = models.CharField(max_length=150, default="", db_default="")
    via = models.CharField(max_length=200, default="", db_default="")
    count = models.PositiveBigIntegerField(default=0)
    last_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "refused outcomes"
        constraints = [
            models.UniqueConstraint(
                fields=["metric_name", "reason", "sender", "via"], name="refused_outcomes_once"
            )
        ]


class ResultPoint(models.Model):
    """Summary of an analysis, for the chart of the result over time."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="points")
    at = models.DateTimeField()
    # {metric: {arm: [difference, low, high, n]}} by the deciding reading.
    numbers = models.JSONField()

    class Meta:
        ordering = ["experiment", "at"]


class ResultSnapshot(models.Model):
    """A stored result that never changes, with a URL of its own."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="snapshots")
    at = models.DateTimeField()
    result = models.JSONField()
    note = models.CharField(max_length=500, blank=True)
    actor = models.CharField(max_length=150)

    class Meta:
        ordering = ["-at"]


class OutcomeImport(models.Model):
    """A file of outcomes that a worker reads, with its progress and the counts of its rows."""

    class State(models.TextChoices):
        WAITING = "waiting"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    filename = models.CharField(max_length=300)
    bytes = models.PositiveBigIntegerField()
    format = models.CharField(max_length=10, default="csv")
    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    # Why reading the file failed.
    error = models.TextField(default="", blank=True)
    # Rows read so far; of these:
    rows = models.PositiveBigIntegerField(default=0)
    recorded = models.PositiveBigIntegerField(default=0)
    duplicates = models.PositiveBigIntegerField(default=0)
    # Outcomes of units without an exposure to an experiment still analysed at the time.
    unexposed = models.PositiveBigIntegerField(default=0)
    # {reason: count}; the rows themselves are `RefusedRow`s.
    refused = models.JSONField(default=dict)
    actor = models.CharField(max_length=150)
    at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-at"]


class RefusedRow(models.Model):
    """A refused row of an import with the reason; the first row after the header is 1."""

    imported = models.ForeignKey(
        OutcomeImport, on_delete=models.CASCADE, related_name="refused_rows", db_index=False
    )
    row = models.PositiveBigIntegerField()
    event_id = models.CharField(max_length=200)
    metric = models.CharField(max_length=200)
    reason = models.CharField(max_length=200)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["imported", "row"], name="refused_row_once")]
