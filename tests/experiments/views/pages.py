"""What the tests of pages share: reading a page, and an experiment with a stored result."""

from __future__ import annotations

import json
import re
from typing import Any

from django.test import Client

from apps.experiments.models import Experiment
from tests.experiments.factories import NOW, make_running

PAGE = "/experiments/weak-or-strong/"
HTMX = {"HX-Request": "true"}


def text_of(client: Client, path: str, **options: Any) -> str:
    answer = client.get(path, **options)
    assert answer.status_code == 200
    return str(answer.content.decode())


def figure(page: str, name: str) -> Any:
    found = re.search(rf'<script id="{name}-data" type="application/json">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def stamp(page: str) -> str:
    found = re.search(r"live/\?\S*?stamp=(\w+)", page)
    assert found is not None
    return found[1]


def store(experiment: Experiment, result: dict[str, Any], **changes: Any) -> Experiment:
    """Give the experiment a result as if an analysis had made it."""
    Experiment.objects.filter(pk=experiment.pk).update(
        result=result, **({"refreshed_at": NOW} | changes)
    )
    experiment.refresh_from_db()
    return experiment


def make_analysed(result: dict[str, Any], **fields: Any) -> Experiment:
    return store(make_running(**fields), result)
