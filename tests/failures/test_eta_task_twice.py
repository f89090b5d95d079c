"""A task with a long delay ran twice: the broker's visibility timeout is one hour (celery #3270
#2481 #5306; kombu #337). Here no task is delayed: each processes the rows that are due.
"""

from __future__ import annotations

import ast
from pathlib import Path

from django.conf import settings

import apps
from controlplane.celery import app

# Names that indicate a delayed message.
DELAYED = {"apply_async", "eta", "countdown", "retry", "sleep"}


def test_no_task_is_delayed() -> None:
    delayed = []
    for path in Path(next(iter(apps.__path__))).rglob("tasks.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "arg", None)
            if name in DELAYED:
                delayed.append(f"{path.name}:{getattr(node, 'lineno', 0)} {name}")
    assert delayed == []


def test_every_task_is_scheduled_and_expires() -> None:
    app.loader.import_default_modules()
    ours = {name for name in app.tasks if not name.startswith("celery.")}
    schedule = settings.CELERY_BEAT_SCHEDULE
    assert {entry["task"] for entry in schedule.values()} <= ours
    for entry in schedule.values():
        assert entry["options"]["expires"] <= max(2.0, entry["schedule"])
