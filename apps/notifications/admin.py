"""Read-only admin: targets are changed on their pages, which validate and audit."""

from __future__ import annotations

from django.contrib import admin
from unfold.admin import ModelAdmin

from apps.lib.admin import ReadOnly
from apps.notifications.addresses import mask_address
from apps.notifications.models import NotificationTarget, OutboxMessage


@admin.register(NotificationTarget)
class NotificationTargetAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["name", "kind", "where", "model", "is_active"]
    fields = ["name", "kind", "where", "events", "model", "is_active", "inactive_reason"]
    list_select_related = ["model"]

    @admin.display(description="address")
    def where(self, target: NotificationTarget) -> str:
        return mask_address(target.address)


@admin.register(OutboxMessage)
class OutboxMessageAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["created_at", "event", "target", "state", "attempts"]
    list_filter = ["event", "target"]
    fields = ["id", "target", "event", "payload", "created_at", "attempts", "next_attempt_at"]
    list_select_related = ["target"]
