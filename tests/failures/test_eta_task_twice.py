"""A task with a long delay ran twice: the broker's visibility timeout is one hour (celery #3270
#2481 #5306; kombu #337). Here no task waits: each is a tick over rows that know when they are due.
"""

from __future__ import annotations

import ast
from pathlib import Path

from django.conf import settings

import apps
from controlplane.celery import app

# What makes a broker keep a message for later.
DELAYED = {"apply_async", "eta", "countdown", "retry", "sleep"}


def test_no_task_of_ours_is_sent_for_later() -> None:
    found = []
    for path in Path(next(iter(apps.__path__))).rglob("tasks.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "arg", None)
            if name in DELAYED:
                found.append(f"{path.name}:{getattr(node, 'lineno', 0)} {name}")
    assert found == []


def test_every_task_is_known_to_the_clock_and_expires_before_it_piles_up() -> None:
    app.loader.import_default_modules()
    ours = {name for name in app.tasks if not name.startswith("celery.")}
    schedule = settings.CELERY_BEAT_SCHEDULE
    assert {entry["task"] for entry in schedule.values()} <= ours
    for entry in schedule.values():
        assert entry["options"]["expires"] <= max(2.0, entry["schedule"])
