"""Registry webhooks live in memory and are lost in a crash (mlflow `webhooks/`).

Here they are only hints: polling finds MLflow's versions and aliases without any webhook.
"""

from __future__ import annotations

import pytest
from django.conf import settings

from apps.models.models import Alias, ModelVersion
from apps.models.tasks import sync_registry_task
from tests.models.conftest import mlflow
from tests.models.registries import Mlflow

__all__ = ["mlflow"]

pytestmark = pytest.mark.django_db


def test_versions_and_aliases_arrive_without_any_webhook(mlflow: Mlflow) -> None:
    assert "models.sync_registry" in settings.CELERY_BEAT_SCHEDULE
    sync_registry_task()
    assert ModelVersion.objects.count() == 2
    mlflow.aliases[0]["version"] = "1"
    sync_registry_task()
    assert Alias.objects.get(name="candidate").version.number == 1
