"""A version whose files, according to MLflow, are elsewhere on this machine: refused.

The attack: the artifact location `/proc/self?x=` made the control plane read that directory and
crash, and no other model was imported any more.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from apps.models.models import ModelVersion, RefusedImport
from apps.models.registry import sync_registry
from tests.models.test_real_mlflow import registry as registry
from tests.models.test_real_mlflow import tracking as tracking

pytestmark = [pytest.mark.e2e, pytest.mark.django_db]

API = "/api/2.0/mlflow"
# The entries of our own list that MLflow itself accepts.
ROOTS = ("/proc/self?x=", "/proc/self", "file:///proc/self/task", "/etc")


def ask(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{url}{API}/{path}", json=body, timeout=30)
    answer.raise_for_status()
    return dict(answer.json())


def register(url: str, model: str, location: str) -> None:
    """Do what any client of the tracking server can do."""
    body = {"name": f"in-{model}", "artifact_location": location}
    experiment = ask(url, "experiments/create", body)["experiment_id"]
    run = ask(url, "runs/create", {"experiment_id": experiment})["run"]["info"]
    ask(url, "registered-models/create", {"name": model})
    source = {"name": model, "source": run["artifact_uri"], "run_id": run["run_id"]}
    ask(url, "model-versions/create", source)


def test_the_location_is_not_read_and_others_are_imported(registry: str) -> None:
    for number, root in enumerate(ROOTS):
        # Imported before the valid ones.
        register(registry, f"attack-{number}", root)
    report = sync_registry()
    assert report.imported == ("digits:1", "digits:2")
    assert report.waiting == ()
    reasons = dict(RefusedImport.objects.values_list("model_name", "reason"))
    assert set(reasons) == {f"attack-{number}" for number in range(len(ROOTS))}
    assert "is not the plain path of a local file" in reasons["attack-0"]
    assert all("path" in reason or "not read" in reason for reason in reasons.values())
    assert not ModelVersion.objects.filter(model__name__startswith="attack").exists()
