"""The admin classes that all apps share; most admin pages are read-only."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


class ReadOnly:
    """Forbids to add, change and delete rows; viewing stays allowed."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
