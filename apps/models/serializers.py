"""Serializers of models, versions, aliases, registrations, tenants and keys."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.models.metadata import Metadata
from apps.models.mlflow_links import registry_url, run_url
from apps.models.models import (
    SERVING_SETTINGS,
    Alias,
    ApiKey,
    Deployment,
    ModelVersion,
    RefusedImport,
    RegisteredModel,
    Registration,
    Tenant,
    valid_name,
)
from apps.models.suggested_settings import Proposal

# State columns of `Retirable` rows.
STATE = ("state", "state_at", "state_by", "state_reason", "state_problem")


class DeploymentSerializer(serializers.ModelSerializer[Deployment]):
    cluster = serializers.CharField(source="cluster.name")

    class Meta:
        model = Deployment
        fields = ["cluster", "state", "reason", "changed_at"]


class ProposalSerializer(serializers.Serializer[Proposal]):
    """Proposed settings for the model, from the durations of the version's trial."""

    timeout_ms = serializers.IntegerField()
    max_batch_size = serializers.IntegerField(
        allow_null=True, help_text="Null for a model without a batch dimension."
    )
    row_ms = serializers.FloatField(help_text="The duration of one row in ms.")
    rows = serializers.IntegerField(allow_null=True)
    rows_ms = serializers.FloatField(
        allow_null=True, help_text="The duration of `rows` rows at once, in ms."
    )


class VersionSerializer(serializers.ModelSerializer[ModelVersion]):
    model = serializers.CharField(source="model.name")
    aliases = serializers.SlugRelatedField[Any](slug_field="name", many=True, read_only=True)
    deployments = DeploymentSerializer(many=True, read_only=True)
    run_url = serializers.SerializerMethodField(help_text="The URL of the training run.")
    registry_url = serializers.SerializerMethodField(
        help_text="The URL of the version in MLflow's registry."
    )
    proposal = ProposalSerializer(allow_null=True, read_only=True)

    class Meta:
        model = ModelVersion
        fields = [
            "model",
            "number",
            "source",
            "registry_number",
            "semantic_tag",
            "description",
            "aliases",
            "signature",
            "batched",
            "metrics",
            "parameters",
            "warmup",
            "tags",
            "dataset_digest",
            "run_id",
            "run_url",
            "registry_url",
            "artifact_uri",
            "artifact_sha256",
            "artifact_bytes",
            "proposal",
            "created_by",
            "created_at",
            "imported_at",
            "deployments",
            *STATE,
        ]

    def get_run_url(self, version: ModelVersion) -> str:
        return run_url(version)

    def get_registry_url(self, version: ModelVersion) -> str:
        return registry_url(version)


@extend_schema_field({"type": "object", "additionalProperties": {"type": "number"}})
class MetricsField(serializers.JSONField):
    pass


@extend_schema_field({"type": "object", "additionalProperties": {"type": "string"}})
class ParametersField(serializers.JSONField):
    pass


@extend_schema_field({"type": "array", "items": {"type": "array", "items": {"type": "object"}}})
class WarmupField(serializers.JSONField):
    pass


class MetadataSerializer(serializers.Serializer[Any]):
    """Metadata of a version. In a multipart form, objects and lists are JSON texts.

    `apps.models.metadata` checks the limits.
    """

    metrics = MetricsField(required=False)
    parameters = ParametersField(required=False)
    dataset_digest = serializers.CharField(required=False, allow_blank=True)
    semantic_tag = serializers.CharField(
        required=False, allow_blank=True, help_text="Example: v1.2.3"
    )
    description = serializers.CharField(required=False, allow_blank=True)
    run_url = serializers.CharField(
        required=False, allow_blank=True, help_text="A page about the training run, e.g. a CI job."
    )
    warmup = WarmupField(required=False, help_text="Warm-up requests, as for the warm-up endpoint.")

    def metadata(self) -> Metadata:
        return Metadata(**{name: self.validated_data.get(name) for name in METADATA})


METADATA = tuple(MetadataSerializer().fields)


class UploadSerializer(MetadataSerializer):
    """An ONNX file, streamed to disk; 413 if it exceeds INTERLOCK_ARTIFACT_BYTES_MAX."""

    file = serializers.FileField()
    external_data = serializers.FileField(
        required=False,
        allow_empty_file=True,
        help_text="External data, with the file name that the ONNX file refers to.",
    )


class ReferenceSerializer(MetadataSerializer):
    uri = serializers.CharField(
        max_length=1_000,
        help_text="models:/NAME/NUMBER, models:/NAME@ALIAS, models:/ID, runs:/RUN/PATH or "
        "mlflow-artifacts:/PATH of the configured MLflow; file: and https: if they are allowed.",
    )


class AliasSerializer(serializers.ModelSerializer[Alias]):
    version = serializers.IntegerField(source="version.number", min_value=1)

    class Meta:
        model = Alias
        fields = ["name", "version", "is_pending", "changed_at"]
        read_only_fields = ["name", "is_pending", "changed_at"]


class ModelSerializer(serializers.ModelSerializer[RegisteredModel]):
    stable = serializers.IntegerField(source="stable.number", allow_null=True, read_only=True)
    previous_stable = serializers.IntegerField(
        source="previous_stable.number", allow_null=True, read_only=True
    )

    class Meta:
        model = RegisteredModel
        fields = [
            "name",
            "description",
            "stable",
            "previous_stable",
            "rollback_until",
            "candidate_plan",
            *SERVING_SETTINGS,
            "created_at",
            *STATE,
        ]
        read_only_fields = ["name", "rollback_until", "created_at", *STATE]


class RetirementSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(
        required=False,
        allow_blank=True,
        default="",
        max_length=1_000,
        help_text="Stored in the audit log.",
    )


class QuotaSerializer(serializers.ModelSerializer[Tenant]):
    """The quota of a tenant; null means no limit."""

    class Meta:
        model = Tenant
        fields = ["requests_per_s", "burst", "concurrency_max", "priority"]


class TenantSerializer(QuotaSerializer):
    # Without the uniqueness validator: the service answers 409 for a duplicate name.
    name = serializers.CharField(max_length=100, validators=[valid_name])
    active_keys = serializers.IntegerField(read_only=True)

    class Meta(QuotaSerializer.Meta):
        fields = ["name", *QuotaSerializer.Meta.fields, "active_keys", "created_at"]
        read_only_fields = ["created_at"]


class ApiKeySerializer(serializers.ModelSerializer[ApiKey]):
    """An API key without its secret: `hint` has the last characters."""

    tenant = serializers.CharField(source="tenant.name", read_only=True)
    models = serializers.ListField(
        source="opens",
        child=serializers.CharField(max_length=100),
        max_length=1_000,
        required=False,
        help_text="The models that the key may use; empty: all.",
    )

    class Meta:
        model = ApiKey
        fields = [
            "id",
            "tenant",
            "name",
            "models",
            "hint",
            "created_at",
            "created_by",
            "revoked_at",
        ]
        read_only_fields = ["hint", "created_at", "created_by", "revoked_at"]


class NewApiKeySerializer(ApiKeySerializer):
    """A new API key with its secret, which only this response contains."""

    key = serializers.CharField(read_only=True)

    class Meta(ApiKeySerializer.Meta):
        fields = [*ApiKeySerializer.Meta.fields, "key"]


class ServingPolicySerializer(serializers.Serializer[Any]):
    """`key_required`: requests without an API key are refused."""

    key_required = serializers.BooleanField()


class WarmupSerializer(serializers.Serializer[Any]):
    """Requests, each a list of inputs (name, datatype, shape, data); empty: one of zeros."""

    requests = serializers.JSONField()


class RegistrationSerializer(serializers.ModelSerializer[Registration]):
    """`state` is waiting, inspecting, registered or refused; a refusal has an error."""

    version = serializers.IntegerField(
        source="version.number", allow_null=True, default=None, read_only=True
    )
    proposal = ProposalSerializer(
        source="version.proposal", allow_null=True, default=None, read_only=True
    )
    is_settled = serializers.SerializerMethodField()
    error = serializers.SerializerMethodField()

    class Meta:
        model = Registration
        fields = [
            "id", "model_name", "uri", "state", "is_settled", "stage", "stage_at", "version",
            "proposal", "error", "actor", "created_at", "settled_at",
        ]  # fmt: skip

    def get_is_settled(self, row: Registration) -> bool:
        return row.settled_at is not None

    @extend_schema_field(
        {"type": "object", "nullable": True, "properties": {
            "code": {"type": "string"}, "message": {"type": "string"}, "detail": {"type": "object"},
        }}
    )  # fmt: skip
    def get_error(self, row: Registration) -> dict[str, Any] | None:
        if row.state != Registration.State.REFUSED:
            return None
        return {"code": row.code, "message": row.reason, "detail": row.detail}


class RefusedImportSerializer(serializers.ModelSerializer[RefusedImport]):
    class Meta:
        model = RefusedImport
        fields = ["model_name", "number", "reason", "at", "attempts", "retry_at"]


class SyncReportSerializer(serializers.Serializer[Any]):
    imported = serializers.ListField(child=serializers.CharField())
    refused = serializers.ListField(child=serializers.CharField())
    aliases = serializers.IntegerField(
        help_text="The number of aliases that moved or were deleted here."
    )
    waiting = serializers.ListField(
        child=serializers.CharField(),
        help_text="Versions that could not be read now; a later sync retries.",
    )
    pushed = serializers.ListField(
        child=serializers.CharField(), help_text="Aliases written to MLflow, as name@alias."
    )


class HintSerializer(serializers.Serializer[Any]):
    """`queued`: a sync was queued for this hint. False: one is queued already, or the event is
    not relevant."""

    queued = serializers.BooleanField()
