"""Helpers of the page tests: read a page, create an experiment with a stored result."""

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
    """Return the page's HTML, without insignificant whitespace at tags."""
    response = client.get(path, **options)
    assert response.status_code == 200
    html = re.sub(r"\s+", " ", response.content.decode())
    return html.replace("> ", ">").replace(" <", "<")


def figure(page: str, name: str) -> Any:
    match = re.search(rf'<script id="{name}-data" type="application/json">(.*?)</script>', page)
    assert match is not None
    return json.loads(match[1])


def stamp(page: str) -> str:
    match = re.search(r"live/\?\S*?stamp=(\w+)", page)
    assert match is not None
    return match[1]


def store(experiment: Experiment, result: dict[str, Any], **changes: Any) -> Experiment:
    """Store a result as an analysis would."""
    Experiment.objects.filter(pk=experiment.pk).update(
        result=result, **({"refreshed_at": NOW} | changes)
    )
    experiment.refresh_from_db()
    return experiment


def make_analysed(result: dict[str, Any], **fields: Any) -> Experiment:
    return store(make_running(**fields), result)
