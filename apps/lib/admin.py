"""What the admin of every app shares: most of it is for looking."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


class ReadOnly:
    """Look, and neither add, change nor delete."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
