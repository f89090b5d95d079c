"""Sets up a new installation: first admin, default cluster, plans, data-plane token, first table.

It can run at every start: it does not change what people have created or changed.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from apps.identity.tokens import adopt_token
from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.lib.errors import Invalid
from apps.models.models import ServingCluster
from apps.rollouts.models import ClusterOrigin, Plan
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import DEFAULT_PLAN
from apps.rollouts.publication import publish_table
from controlplane import env

BOOTSTRAP = Actor("interlock", "bootstrap")
DEFAULT_CLUSTER = "default"


class Command(BaseCommand):
    help = __doc__ or ""

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        done = [self._admin(), self._cluster(), self._plan(), self._instance()]
        generation = publish_table(reason="start", actor=BOOTSTRAP, now=database_now())
        summary = ", ".join(part for part in done if part) or "nothing to do"
        self.stdout.write(f"bootstrap: {summary}; routing table generation {generation}")

    @staticmethod
    def _admin() -> str:
        name = env.text("INTERLOCK_ADMIN_USERNAME", "admin")
        password = env.text("INTERLOCK_ADMIN_PASSWORD", "")
        if User.objects.filter(is_superuser=True).exists():
            return ""
        if not password:
            return "no admin: set INTERLOCK_ADMIN_PASSWORD"
        try:
            validate_password(password, User(username=name))
        except ValidationError as error:
            raise CommandError(f"INTERLOCK_ADMIN_PASSWORD: {' '.join(error.messages)}") from error
        User.objects.create_superuser(name, password=password)
        return f"admin {name} created"

    @staticmethod
    def _cluster() -> str:
        """Create the default cluster, or update it from the environment, as ports may change.

        A cluster that a person has changed is not updated: `ClusterOrigin` holds the values that
        bootstrap set last.
        """
        if not settings.TRITON_URLS:
            return "no serving cluster: set INTERLOCK_TRITON_URLS"
        expected = {
            "endpoints": settings.TRITON_URLS,
            "repository_path": str(settings.MODEL_REPOSITORY),
        }
        cluster, is_new = ServingCluster.objects.get_or_create(
            name=DEFAULT_CLUSTER, defaults={**expected, "is_default": True}
        )
        current = {name: getattr(cluster, name) for name in expected}
        if not is_new and current != expected:
            if _was_changed_by_people(cluster, current):
                return (
                    f"cluster {cluster.name} keeps {', '.join(cluster.endpoints)}, set by a "
                    f"person; INTERLOCK_TRITON_URLS is {', '.join(settings.TRITON_URLS)}"
                )
            ServingCluster.objects.filter(pk=cluster.pk).update(**expected)
        ClusterOrigin.objects.update_or_create(cluster=cluster, defaults=expected)
        if is_new:
            return f"cluster {cluster.name} created"
        return "" if current == expected else f"cluster {cluster.name} moved"

    @staticmethod
    def _instance() -> str:
        """Issue the data plane's token from the environment, once."""
        name = env.text("INTERLOCK_INSTANCE_NAME", "")
        if not (settings.OWN_TOKENS_REQUIRED and settings.INSTANCE_TOKEN and name):
            return ""
        try:
            is_new = adopt_token(
                instance=name, secret=settings.INSTANCE_TOKEN, actor=BOOTSTRAP, now=database_now()
            )
        except Invalid as error:
            raise CommandError(f"INTERLOCK_INSTANCE_NAME: {error.message}") from error
        return f"token of instance {name} issued" if is_new else ""

    @staticmethod
    def _plan() -> str:
        """Save the plan templates, once: a plan that a person deleted stays deleted."""
        if Plan.objects.exists():
            return ""
        for template in TEMPLATES:
            save_plan(
                document=template.document,
                description=template.description,
                is_default=template.document.name == DEFAULT_PLAN,
                actor=BOOTSTRAP,
            )
        return f"plans {', '.join(template.document.name for template in TEMPLATES)} created"


def _was_changed_by_people(cluster: ServingCluster, current: dict[str, Any]) -> bool:
    """Return whether the cluster differs from the values that bootstrap set last."""
    origin = ClusterOrigin.objects.filter(cluster=cluster).values(*current).first()
    if origin is None:
        # Older releases stored no origin. The admin pages log changes of a cluster.
        entries = LogEntry.objects.filter(content_type__model="servingcluster")
        return entries.filter(object_id=str(cluster.pk)).exists()
    return bool(origin != current)
