from __future__ import annotations

from django.apps import AppConfig


class ExperimentsConfig(AppConfig):
    name = "apps.experiments"

    def ready(self) -> None:
        from apps.experiments import guardrails, metrics, needs

        guardrails.register()
        metrics.register()
        needs.register()
