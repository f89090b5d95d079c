from __future__ import annotations

from django.apps import AppConfig


class ControlPlaneConfig(AppConfig):
    name = "controlplane"
    verbose_name = "API access"

    def ready(self) -> None:
        # Connects the receivers that write logins into the audit log.
        from controlplane import logins as logins
