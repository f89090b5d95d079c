from __future__ import annotations

from django.apps import AppConfig


class RolloutsConfig(AppConfig):
    name = "apps.rollouts"

    def ready(self) -> None:
        from apps.rollouts.check_kinds import WEBHOOK, register_settings_check
        from apps.rollouts.webhooks import problem_of_address

        register_settings_check(WEBHOOK, problem_of_address)
