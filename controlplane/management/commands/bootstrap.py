"""Makes a new installation usable: first admin, default cluster, ready plans, the data plane's
token, first table.

It may run at every start: what is there is left as people made it.
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
        told = ", ".join(part for part in done if part) or "nothing to do"
        self.stdout.write(f"bootstrap: {told}; routing table generation {generation}")

    @staticmethod
    def _admin() -> str:
        name = env.text("INTERLOCK_ADMIN_USERNAME", "admin")
        password = env.text("INTERLOCK_ADMIN_PASSWORD", "")
        if User.objects.filter(is_superuser=True).exists():
            return ""
        if not password:
            return "no admin yet: set INTERLOCK_ADMIN_PASSWORD"
        try:
            validate_password(password, User(username=name))
        except ValidationError as error:
            raise CommandError(f"INTERLOCK_ADMIN_PASSWORD: {' '.join(error.messages)}") from error
        User.objects.create_superuser(name, password=password)
        return f"admin {name} made"

    @staticmethod
    def _cluster() -> str:
        """Make the default cluster; it follows the environment, as ports may change.

        That ends where a person changes it: what bootstrap gave it last is remembered beside it.
        """
        if not settings.TRITON_URLS:
            return "no serving cluster: set INTERLOCK_TRITON_URLS"
        wanted = {
            "endpoints": settings.TRITON_URLS,
            "repository_path": str(settings.MODEL_REPOSITORY),
        }
        cluster, made = ServingCluster.objects.get_or_create(
            name=DEFAULT_CLUSTER, defaults={**wanted, "is_default": True}
        )
        present = {name: getattr(cluster, name) for name in wanted}
        if not made and present != wanted:
            if _was_changed_by_people(cluster, present):
                return (
                    f"cluster {cluster.name} left at {', '.join(cluster.endpoints)}, as people set "
                    f"it, though INTERLOCK_TRITON_URLS is {', '.join(settings.TRITON_URLS)}"
                )
            ServingCluster.objects.filter(pk=cluster.pk).update(**wanted)
        ClusterOrigin.objects.update_or_create(cluster=cluster, defaults=wanted)
        if made:
            return f"cluster {cluster.name} made"
        return "" if present == wanted else f"cluster {cluster.name} moved"

    @staticmethod
    def _instance() -> str:
        """Issue the token that the environment gives to its data plane, once."""
        name = env.text("INTERLOCK_INSTANCE_NAME", "")
        if not (settings.OWN_TOKENS_REQUIRED and settings.INSTANCE_TOKEN and name):
            return ""
        try:
            issued = adopt_token(
                instance=name, secret=settings.INSTANCE_TOKEN, actor=BOOTSTRAP, now=database_now()
            )
        except Invalid as error:
            raise CommandError(f"INTERLOCK_INSTANCE_NAME: {error.message}") from error
        return f"token of instance {name} issued" if issued else ""

    @staticmethod
    def _plan() -> str:
        """Save the ready plans, once: one that a person deleted stays deleted."""
        if Plan.objects.exists():
            return ""
        for template in TEMPLATES:
            save_plan(
                document=template.document,
                description=template.description,
                is_default=template.document.name == DEFAULT_PLAN,
                actor=BOOTSTRAP,
            )
        return f"plans {', '.join(template.document.name for template in TEMPLATES)} made"


def _was_changed_by_people(cluster: ServingCluster, present: dict[str, Any]) -> bool:
    """Say whether the cluster is not as bootstrap left it."""
    origin = ClusterOrigin.objects.filter(cluster=cluster).values(*present).first()
    if origin is None:
        # Bootstrap did not always remember. The admin pages log who changes a cluster there.
        entries = LogEntry.objects.filter(content_type__model="servingcluster")
        return entries.filter(object_id=str(cluster.pk)).exists()
    return bool(origin != present)
