"""Markup in text of a trainer, of MLflow or of an operator is shown as text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import ModelVersion, RefusedImport, RegisteredModel
from apps.rollouts.models import Instance, Rollout
from tests.rollouts.factories import make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).parents[2]
SCRIPT = "<script>alert(1)</script>"
BROKEN = "\"'><img src=x onerror=alert(1)>"
EVIL = SCRIPT + BROKEN + "</script>{{ 7|add:7 }}{% load x %}"
# Help texts of Django's password fields; a plain-text mail.
TRUSTED = {"templates/registration/_fields.html", "templates/registration/reset_mail.txt"}


@pytest.fixture
def pages() -> list[str]:
    """Create rows with markup in all external text; return the pages that show them."""
    rollout = make_baking(make_model())
    RegisteredModel.objects.update(description=EVIL, registry_problem=EVIL)
    ModelVersion.objects.update(
        description=EVIL,
        semantic_tag=SCRIPT,
        metrics={EVIL: 1.0, "m": EVIL},
        parameters={EVIL: EVIL},
        tags={EVIL: EVIL},
        dataset_digest=EVIL,
        run_id=SCRIPT,
        created_by=EVIL,
        artifact_uri=EVIL,
        signature={"inputs": [{"name": EVIL, "datatype": SCRIPT, "shape": [1]}], "outputs": []},
        state_reason=EVIL,
        state_at=database_now(),
    )
    Rollout.objects.update(reason=EVIL, started_by=EVIL)
    RefusedImport.objects.create(model_name=EVIL, number=1, reason=EVIL)
    make_instance("i-1", refusal=EVIL, refused_generation=9)
    Instance.objects.update(name=EVIL)
    return [
        "/", "/models/", "/models/digits/", "/models/digits/versions/2/", "/fleet/", "/rollouts/",
        "/models/digits/promote/", "/models/digits/history/", f"/rollouts/{rollout.pk}/",
        "/models/digits/versions/3/retirement/", "/rollouts/rules/",
    ]  # fmt: skip


def test_markup_is_shown_as_text(pages: list[str]) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser(f"{SCRIPT}{BROKEN}"))
    shown = 0
    for path in pages:
        for headers in ({}, {"HX-Request": "true"}):
            answer = client.get(path, headers=headers)
            text = answer.content.decode()
            assert answer.status_code == 200, (path, text[:500])
            assert SCRIPT not in text, path
            assert "<img src=x" not in text, path
            assert "14{%" not in text, path
            shown += "&lt;script&gt;alert(1)" in text
    assert shown > 10


def test_no_template_marks_text_as_safe() -> None:
    done = subprocess.run(
        ["git", "grep", "-lE", r"\|safe\b|autoescape off|mark_safe|safeseq", "--", "templates",
         "apps", "controlplane"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert set(done.stdout.split()) <= TRUSTED
