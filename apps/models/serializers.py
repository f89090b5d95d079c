"""What the API says of models and versions, and what it takes."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.models.models import Deployment, ModelVersion, RefusedImport, RegisteredModel


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
            "timeout_ms",
            "max_batch_size",
            "max_queue_delay_us",
            "unit_header",
            "unit_parameter",
            "created_at",
        ]
        read_only_fields = ["name", "rollback_until", "created_at"]
        extra_kwargs = {
            "timeout_ms": {"min_value": 1, "max_value": 600_000},
            "max_batch_size": {"min_value": 1, "max_value": 4_096},
            "max_queue_delay_us": {"min_value": 0, "max_value": 1_000_000},
        }


class RefusedImportSerializer(serializers.ModelSerializer[RefusedImport]):
    class Meta:
        model = RefusedImport
        fields = ["model_name", "number", "reason", "at"]


class SyncReportSerializer(serializers.Serializer[Any]):
    imported = serializers.ListField(child=serializers.CharField())
    refused = serializers.ListField(child=serializers.CharField())
    aliases = serializers.IntegerField()
