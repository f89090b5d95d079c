"""What the API says of models and versions, and what it takes."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.models.models import (
    SERVING_SETTINGS,
    ApiKey,
    Deployment,
    ModelVersion,
    RefusedImport,
    RegisteredModel,
    Tenant,
    valid_name,
)


class DeploymentSerializer(serializers.ModelSerializer[Deployment]):
    cluster = serializers.CharField(source="cluster.name")

    class Meta:
        model = Deployment
        fields = ["cluster", "state", "reason", "changed_at"]


class VersionSerializer(serializers.ModelSerializer[ModelVersion]):
    model = serializers.CharField(source="model.name")
    aliases = serializers.SlugRelatedField[Any](slug_field="name", many=True, read_only=True)
    deployments = DeploymentSerializer(many=True, read_only=True)

    class Meta:
        model = ModelVersion
        fields = [
            "model",
            "number",
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
            "artifact_uri",
            "artifact_sha256",
            "artifact_bytes",
            "created_by",
            "created_at",
            "deployments",
        ]


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
            *SERVING_SETTINGS,
            "created_at",
        ]
        read_only_fields = ["name", "rollback_until", "created_at"]


class QuotaSerializer(serializers.ModelSerializer[Tenant]):
    """How much a tenant may ask; null is no limit."""

    class Meta:
        model = Tenant
        fields = ["requests_per_s", "burst", "concurrency_max", "priority"]


class TenantSerializer(QuotaSerializer):
    # Without the framework's look for another one of that name: the service answers 409.
    name = serializers.CharField(max_length=100, validators=[valid_name])
    active_keys = serializers.IntegerField(read_only=True)

    class Meta(QuotaSerializer.Meta):
        fields = ["name", *QuotaSerializer.Meta.fields, "active_keys", "created_at"]
        read_only_fields = ["created_at"]


class ApiKeySerializer(serializers.ModelSerializer[ApiKey]):
    """An API key without the key: `hint` has its last characters."""

    tenant = serializers.CharField(source="tenant.name", read_only=True)

    class Meta:
        model = ApiKey
        fields = ["id", "tenant", "name", "hint", "created_at", "created_by", "revoked_at"]
        read_only_fields = ["hint", "created_at", "created_by", "revoked_at"]


class NewApiKeySerializer(ApiKeySerializer):
    """The one answer that has the key itself."""

    key = serializers.CharField(read_only=True)

    class Meta(ApiKeySerializer.Meta):
        fields = [*ApiKeySerializer.Meta.fields, "key"]


class ServingPolicySerializer(serializers.Serializer[Any]):
    """`key_required`: requests without an API key are refused."""

    key_required = serializers.BooleanField()


class WarmupSerializer(serializers.Serializer[Any]):
    """Requests, each a list of inputs (name, datatype, shape, data); none: one of zeros."""

    requests = serializers.JSONField()


class RefusedImportSerializer(serializers.ModelSerializer[RefusedImport]):
    class Meta:
        model = RefusedImport
        fields = ["model_name", "number", "reason", "at"]


class SyncReportSerializer(serializers.Serializer[Any]):
    imported = serializers.ListField(child=serializers.CharField())
    refused = serializers.ListField(child=serializers.CharField())
    aliases = serializers.IntegerField()
