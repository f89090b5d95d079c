"""Serializers. Addresses and error responses are shown to administrators of the target only."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.models.access import has_role
from apps.models.models import RegisteredModel, Role
from apps.notifications.addresses import mask_address
from apps.notifications.events import EVENTS
from apps.notifications.models import NotificationTarget, OutboxMessage


class _Permissions:
    """Caches whether the user may change a target, by the target's model."""

    def __init__(self, user: Any) -> None:
        self._user = user
        self._known: dict[int | None, bool] = {}

    def may_change(self, target: NotificationTarget) -> bool:
        key = target.model_id
        if key not in self._known:
            self._known[key] = has_role(self._user, target.model, Role.ADMIN)
        return self._known[key]


def permission_context(user: Any) -> dict[str, Any]:
    """Return the context that these serializers need."""
    return {"permissions": _Permissions(user)}


class TargetSerializer(serializers.ModelSerializer[NotificationTarget]):
    model = serializers.SlugRelatedField[RegisteredModel](
        slug_field="name",
        queryset=RegisteredModel.objects.all(),
        allow_null=True,
        required=False,
        default=None,
        help_text="Only events of this model; null: of all models.",
    )
    events = serializers.ListField(
        child=serializers.ChoiceField(choices=list(EVENTS)),
        required=False,
        default=list,
        help_text="Only these events; empty: all.",
    )

    class Meta:
        model = NotificationTarget
        fields = [
            "name",
            "kind",
            "address",
            "events",
            "model",
            "is_active",
            "inactive_reason",
            "created_by",
            "created_at",
        ]
        read_only_fields = ["is_active", "inactive_reason", "created_by", "created_at"]
        # The service reports a duplicate name with 409.
        extra_kwargs: dict[str, Any] = {"name": {"validators": []}}

    def to_representation(self, instance: NotificationTarget) -> Any:
        shown = super().to_representation(instance)
        if not self.context["permissions"].may_change(instance):
            shown["address"] = mask_address(instance.address)
        return shown


class ChangeTargetSerializer(TargetSerializer):
    class Meta(TargetSerializer.Meta):
        fields = ["address", "events", "model"]
        read_only_fields: list[str] = []
        extra_kwargs: dict[str, Any] = {}


class NewTargetSerializer(TargetSerializer):
    secret = serializers.CharField(
        read_only=True, help_text="The secret of a webhook; only this response contains it."
    )

    class Meta(TargetSerializer.Meta):
        fields = [*TargetSerializer.Meta.fields, "secret"]


class DeliverySerializer(serializers.ModelSerializer[OutboxMessage]):
    target = serializers.CharField(source="target.name", read_only=True)
    state = serializers.ChoiceField(choices=OutboxMessage.State.choices, read_only=True)
    last_error = serializers.SerializerMethodField()

    class Meta:
        model = OutboxMessage
        fields = [
            "id",
            "target",
            "event",
            "payload",
            "state",
            "created_at",
            "attempts",
            "next_attempt_at",
            "delivered_at",
            "gave_up_at",
            "last_error",
        ]
        read_only_fields = fields

    @extend_schema_field(serializers.CharField())
    def get_last_error(self, message: OutboxMessage) -> str:
        """The response of an endpoint may be confidential: administrators only."""
        if not message.last_error or self.context["permissions"].may_change(message.target):
            return message.last_error
        return "shown to administrators only"
