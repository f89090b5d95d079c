from __future__ import annotations

from django.apps import AppConfig


class ExperimentsConfig(AppConfig):
    name = "apps.experiments"

    def ready(self) -> None:
        from apps.experiments import guardrails, metrics, version_usage

        guardrails.register()
        metrics.register()
        version_usage.register()
