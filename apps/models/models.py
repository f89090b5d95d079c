"""Models, versions and deployments. PostgreSQL is the source of truth; MLflow is one origin.

`LiveSplit` is the one split that a model may have at a time, for a rollout or an experiment. Its
primary key enforces this rule, so no view has to check it.
"""

from __future__ import annotations

import math
import re
import uuid
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.utils.deconstruct import deconstructible

from apps.lib.transitions import Transition
from apps.models.archivable import Retirable, RetirableQuerySet
from apps.models.states import DeploymentState
from apps.models.suggested_settings import Proposal, propose
from contract.names import NAME_PATTERN, NAME_RULE

# The columns of a model with its serving settings; all of them are in the routing table.
SERVING_SETTINGS = (
    "timeout_ms",
    "max_batch_size",
    "max_queue_delay_us",
    "max_queue_size",
    "breaker_window",
    "breaker_failures",
    "breaker_open_ms",
    "cache_ttl_s",
    "cache_shared",
    "unit_header",
    "unit_parameter",
)


@deconstructible(path="django.core.validators.RegexValidator")
class WholeValidator(RegexValidator):
    """Matches the whole text; the `$` of RegexValidator would accept a trailing line feed.

    Migrations refer to RegexValidator: the rows are the same.
    """

    def __call__(self, value: Any) -> None:
        if not re.fullmatch(self.regex, str(value)):
            raise ValidationError(self.message, code=self.code, params={"value": value})


valid_name = WholeValidator(NAME_PATTERN, f"A name has {NAME_RULE}.")
valid_header = WholeValidator(
    r"^[A-Za-z0-9][A-Za-z0-9-]*$", "A header's name has letters, digits and dashes only."
)


def between(least: float, most: float) -> list[Any]:
    """Return validators for a range; forms, the API and the services read the limits from them."""
    return [MinValueValidator(least), MaxValueValidator(most)]


def valid_number(value: float) -> None:
    """Refuse NaN, which is neither below nor above any limit."""
    if math.isnan(value):
        raise ValidationError("This is not a number.")


# The alias of the stable version. MLflow's is reset to it, never the reverse.
CHAMPION = "champion"
# A move of this alias may start a rollout.
CANDIDATE = "candidate"


class RegisteredModel(Retirable):
    """A model that applications call by name, with its serving settings."""

    name = models.CharField(max_length=100, unique=True, validators=[valid_name])
    description = models.TextField(blank=True)
    stable = models.ForeignKey(
        "ModelVersion", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    # The previous stable version. It stays loaded until `rollback_until`, for an instant rollback.
    previous_stable = models.ForeignKey(
        "ModelVersion", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    rollback_until = models.DateTimeField(null=True, blank=True)
    # The plan of the rollout that starts when the alias `candidate` moves; empty: no rollout.
    candidate_plan = models.CharField(max_length=100, blank=True, default="", db_default="")
    # The version of the alias when it was last processed: each move is processed once.
    candidate_seen = models.ForeignKey(
        "ModelVersion", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    # What could not be synchronised from MLflow for this model, and why; empty: nothing.
    registry_problem = models.TextField(blank=True, default="", db_default="")
    timeout_ms = models.PositiveIntegerField(default=1_000, validators=between(1, 600_000))
    max_batch_size = models.PositiveIntegerField(default=32, validators=between(1, 4_096))
    max_queue_delay_us = models.PositiveIntegerField(
        default=5_000, validators=between(0, 1_000_000)
    )
    # The maximum number of queued rows of a version; beyond it, requests get 503 at once.
    max_queue_size = models.PositiveIntegerField(
        default=1_024, db_default=1_024, validators=between(1, 1_000_000)
    )
    # A version's breaker opens when `failures` of its last `window` calls failed.
    breaker_window = models.PositiveIntegerField(
        default=20, db_default=20, validators=between(1, 10_000)
    )
    breaker_failures = models.PositiveIntegerField(
        default=10, db_default=10, validators=between(1, 10_000)
    )
    breaker_open_ms = models.PositiveIntegerField(
        default=5_000, db_default=5_000, validators=between(100, 600_000)
    )
    # How long a prediction is cached; None: not at all.
    cache_ttl_s = models.PositiveIntegerField(
        null=True, blank=True, validators=between(1, 30 * 86_400)
    )
    # Cache predictions in Redis as well, for all instances.
    cache_shared = models.BooleanField(default=False, db_default=False)
    unit_header = models.CharField(max_length=100, default="x-unit-id", validators=[valid_header])
    unit_parameter = models.CharField(max_length=100, default="unit_id")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = RetirableQuerySet["RegisteredModel"].as_manager()

    class Meta:
        verbose_name = "model"
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(max_batch_size__gte=1, timeout_ms__gte=1),
                name="model_batch_and_timeout_at_least_one",
            ),
            models.CheckConstraint(
                condition=models.Q(breaker_failures__lte=models.F("breaker_window")),
                name="model_breaker_within_its_window",
                violation_error_message="breaker_failures cannot be more than breaker_window: "
                "the breaker would never open.",
            ),
            models.CheckConstraint(
                condition=models.Q(cache_shared=False) | models.Q(cache_ttl_s__isnull=False),
                name="model_cache_shared_needs_ttl",
                violation_error_message="cache_shared needs cache_ttl_s: without it nothing is "
                "cached.",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class ModelVersion(Retirable):
    """One immutable trained artifact of a model."""

    class Source(models.TextChoices):
        MLFLOW = "mlflow", "MLflow's registry"
        UPLOAD = "upload", "an upload"
        URI = "uri", "a URI"

    model = models.ForeignKey(RegisteredModel, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    source = models.CharField(
        max_length=10, choices=Source.choices, default=Source.UPLOAD, db_default=Source.UPLOAD
    )
    # Its number in MLflow's registry; it differs from `number` if an upload had that number.
    registry_number = models.PositiveIntegerField(null=True, blank=True)
    semantic_tag = models.CharField(max_length=50, blank=True)
    description = models.TextField(blank=True)
    # {"inputs": [{"name", "datatype", "shape"}], "outputs": […]}, as the contract's Signature.
    signature = models.JSONField()
    # False without a batch dimension: requests are never batched.
    batched = models.BooleanField(default=True)
    # Warm-up requests, as OIP input lists; empty: zeros of the signature's shape.
    warmup = models.JSONField(default=list, blank=True)
    artifact_uri = models.CharField(max_length=1_000)
    artifact_path = models.CharField(max_length=1_000)
    artifact_sha256 = models.CharField(max_length=64)
    artifact_bytes = models.PositiveBigIntegerField()
    # The duration of its trial in ms, by the number of rows; None without a trial.
    trial_ms = models.JSONField(null=True, blank=True)
    metrics = models.JSONField(default=dict, blank=True)
    parameters = models.JSONField(default=dict, blank=True)
    tags = models.JSONField(default=dict, blank=True)
    dataset_digest = models.CharField(max_length=200, blank=True)
    run_id = models.CharField(max_length=64, blank=True)
    # The page of the training run if it is not in MLflow, e.g. a CI job.
    run_url = models.URLField(max_length=1_000, blank=True, default="", db_default="")
    created_by = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField()
    imported_at = models.DateTimeField(auto_now_add=True)

    objects = RetirableQuerySet["ModelVersion"].as_manager()

    class Meta:
        verbose_name = "version"
        ordering = ["model", "-number"]
        constraints = [
            models.UniqueConstraint(fields=["model", "number"], name="version_number_once"),
            models.UniqueConstraint(
                fields=["model", "registry_number"], name="version_registry_number_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model.name}:{self.number}"

    @property
    def proposal(self) -> Proposal | None:
        """The settings that its trial suggests for the model."""
        return propose(self.trial_ms)


class Alias(models.Model):
    """A movable name for a version: `champion`, `candidate`."""

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=100)
    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="aliases")
    changed_at = models.DateTimeField(auto_now=True)
    # Set here and not yet in MLflow; until then MLflow's alias does not overwrite it.
    is_pending = models.BooleanField(default=False, db_default=False)
    # For `champion`: the number that was last written to MLflow.
    written_number = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "aliases"
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["model", "name"], name="alias_once_per_model")
        ]

    def __str__(self) -> str:
        return self.name


class RefusedImport(models.Model):
    """A version of MLflow's registry that cannot be served, or not be read yet, with the reason."""

    model_name = models.CharField(max_length=300)
    number = models.PositiveIntegerField()
    reason = models.TextField()
    at = models.DateTimeField(auto_now=True)
    # If not read yet: the attempts and the time of the next one. None: it is refused.
    attempts = models.PositiveIntegerField(default=0, db_default=0)
    retry_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["model_name", "-number"]
        constraints = [
            models.UniqueConstraint(fields=["model_name", "number"], name="refused_import_once")
        ]


class Registration(models.Model):
    """A request to register a file or URI, with its result; see `registration_jobs`."""

    class State(models.TextChoices):
        WAITING = "waiting"
        INSPECTING = "inspecting"
        REGISTERED = "registered"
        REFUSED = "refused"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    model_name = models.CharField(max_length=100)
    uri = models.CharField(max_length=1_000)
    # Its files wait in a directory of the registration.
    is_upload = models.BooleanField(default=False)
    # Metadata from the request: the arguments of `metadata.Metadata`.
    metadata = models.JSONField(default=dict)
    actor = models.CharField(max_length=150)
    origin = models.CharField(max_length=100, blank=True)
    state = models.CharField(max_length=20, choices=State.choices, default=State.WAITING)
    # The current stage, and when it began.
    stage = models.CharField(max_length=200, blank=True)
    stage_at = models.DateTimeField()
    # For a refusal: the error of the API.
    code = models.CharField(max_length=50, blank=True)
    reason = models.TextField(blank=True)
    detail = models.JSONField(default=dict, blank=True)
    version = models.ForeignKey(
        ModelVersion, null=True, blank=True, on_delete=models.SET_NULL, related_name="registrations"
    )
    attempts = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(db_index=True)
    settled_at = models.DateTimeField(null=True, blank=True, db_index=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.model_name} from {self.uri}"


class ServingCluster(models.Model):
    """A set of Triton endpoints with the same versions and one model repository."""

    name = models.CharField(max_length=100, unique=True, validators=[valid_name])
    # HTTP addresses, e.g. ["http://triton-0:8000"].
    endpoints = models.JSONField()
    repository_path = models.CharField(max_length=1_000)
    is_default = models.BooleanField(default=False)
    # A call is hedged to a second endpoint after this time without an answer; None: never.
    hedge_after_ms = models.PositiveIntegerField(
        null=True, blank=True, validators=between(1, 600_000)
    )

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(
                fields=["is_default"],
                condition=models.Q(is_default=True),
                name="one_default_cluster",
            )
        ]

    def __str__(self) -> str:
        return self.name


class Deployment(models.Model):
    """A version on a serving cluster, with the state of the last probe."""

    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="deployments")
    cluster = models.ForeignKey(
        ServingCluster, on_delete=models.CASCADE, related_name="deployments"
    )
    state = models.CharField(
        max_length=20, choices=DeploymentState.choices, default=DeploymentState.LOADING
    )
    reason = models.TextField(blank=True)
    revision = models.PositiveIntegerField(default=0)
    # While a worker holds this lease, no other worker processes the deployment.
    leased_until = models.DateTimeField(null=True, blank=True)
    # While draining: the generation of the routing table that removed it.
    retired_generation = models.BigIntegerField(null=True, blank=True)
    changed_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["version", "cluster"], name="deployment_once")
        ]
        indexes = [models.Index(fields=["state"])]

    def __str__(self) -> str:
        return f"{self.version} on {self.cluster}"


class DeploymentEvent(Transition):
    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="events")


class LiveSplit(models.Model):
    """The one split that a model may have at a time; the primary key forbids a second one."""

    class Kind(models.TextChoices):
        CANARY = "canary"
        EXPERIMENT = "experiment"

    model = models.OneToOneField(
        RegisteredModel, on_delete=models.PROTECT, primary_key=True, related_name="live_split"
    )
    kind = models.CharField(max_length=20, choices=Kind.choices)
    owner_id = models.UUIDField(unique=True)
    # Primary keys of the versions that must stay loaded while the split is held.
    version_ids = models.JSONField(default=list)
    # The contract's split for the routing table; empty while its owner only prepares.
    document = models.JSONField(default=dict)
    # The contract's shadow, besides the split; empty without one.
    shadow = models.JSONField(default=dict, db_default={})


class Tenant(models.Model):
    """An application, or a group of applications, that requests predictions, with its quota.

    A limit of None means no limit.
    """

    class Priority(models.TextChoices):
        HIGH = "high"
        NORMAL = "normal"
        LOW = "low"

    name = models.CharField(max_length=100, unique=True, validators=[valid_name])
    requests_per_s = models.FloatField(
        null=True, blank=True, validators=[valid_number, *between(0.001, 1_000_000)]
    )
    # The burst of requests after an idle time; None: the rate of one second.
    burst = models.PositiveIntegerField(null=True, blank=True, validators=between(1, 1_000_000))
    concurrency_max = models.PositiveIntegerField(
        null=True, blank=True, validators=between(1, 100_000)
    )
    priority = models.CharField(max_length=10, choices=Priority.choices, default=Priority.NORMAL)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(burst__isnull=True) | models.Q(requests_per_s__isnull=False),
                name="tenant_burst_needs_rate",
                violation_error_message="burst (requests at once) needs a rate, requests per "
                "second (requests_per_s).",
            )
        ]

    def __str__(self) -> str:
        return self.name


class ApiKey(models.Model):
    """A key that an application of a tenant sends with requests. Only its SHA-256 is stored.

    An API token, by contrast, gives a person or CI access to the REST API (`controlplane.models`).
    """

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="keys")
    name = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    # The last characters of the key, to distinguish keys.
    hint = models.CharField(max_length=4)
    # Names of the models that the key may use; empty: all. Names, not foreign keys: after the
    # models are deleted, an empty list would allow all others.
    opens = models.JSONField(default=list, blank=True)
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=150)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "API key"
        ordering = ["tenant", "-id"]

    def __str__(self) -> str:
        return f"{self.tenant}: {self.name} (…{self.hint})"


class ServingPolicy(models.Model):
    """Settings for all requests of all models: a single row, which a constraint enforces."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    # If False, requests without an API key are served too, without a tenant.
    key_required = models.BooleanField(default=False)

    class Meta:
        verbose_name_plural = "serving policy"
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="one_serving_policy")]

    def __str__(self) -> str:
        return "serving policy"


class Role(models.TextChoices):
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


class ModelRole(models.Model):
    """The role of a user on a model; without a model, on all models."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="model_roles"
    )
    model = models.ForeignKey(
        RegisteredModel, null=True, blank=True, on_delete=models.CASCADE, related_name="roles"
    )
    role = models.CharField(max_length=20, choices=Role.choices)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["user", "model"], name="one_role_per_user_and_model", nulls_distinct=False
            )
        ]


class AuditEntry(models.Model):
    """A change to serving: actor, origin, time, values before and after. Append-only."""

    at = models.DateTimeField(auto_now_add=True, db_index=True)
    actor = models.CharField(max_length=150)
    origin = models.CharField(max_length=100, blank=True)
    action = models.CharField(max_length=100)
    target = models.CharField(max_length=300)
    before: models.JSONField[Any, Any] = models.JSONField(default=dict)
    after: models.JSONField[Any, Any] = models.JSONField(default=dict)

    class Meta:
        verbose_name_plural = "audit entries"
        ordering = ["-id"]
