from __future__ import annotations

from django.apps import AppConfig


class RolloutsConfig(AppConfig):
    name = "apps.rollouts"

    def ready(self) -> None:
        from apps.rollouts.check_kinds import WEBHOOK, let_look
        from apps.rollouts.webhooks import problem_of_address

        let_look(WEBHOOK, problem_of_address)
