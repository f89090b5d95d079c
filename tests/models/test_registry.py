"""The sync imports each version of MLflow once; an unservable version does not block others."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connection

from apps.lib.errors import Conflict, Unavailable
from apps.models import mlflow as mlflow_client
from apps.models import registry
from apps.models.models import Alias, ModelVersion, RefusedImport, RegisteredModel
from apps.models.registry import sync_now, sync_registry
from apps.models.tasks import SYNC_LOCK, sync_registry_task
from apps.models.versions import sweep_scratch
from tests.models.registries import Mlflow, client_of

pytestmark = pytest.mark.django_db


def test_versions_come_in_once_with_what_is_known_of_them(mlflow: Mlflow) -> None:
    assert sync_registry().imported == ("digits:1", "digits:2")
    assert sync_registry().imported == ()
    version = ModelVersion.objects.get(number=2)
    assert version.signature["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert (version.metrics, version.model.description) == ({"accuracy": 0.9}, "of digits")
    assert Path(version.artifact_path).read_bytes() == mlflow.files["model.onnx"]


def test_aliases_follow_but_champion_is_ours(mlflow: Mlflow) -> None:
    mlflow.aliases.append({"alias": "champion", "version": "2"})
    sync_registry()
    mlflow.aliases[0]["version"] = "1"
    assert sync_registry().aliases == 1
    assert [(a.name, a.version.number) for a in Alias.objects.all()] == [("candidate", 1)]
    mlflow.aliases = []
    sync_registry()
    assert not Alias.objects.exists()


def test_a_version_without_onnx_is_refused_once_with_the_reason(mlflow: Mlflow) -> None:
    mlflow.files["MLmodel"] = b"flavors:\n  sklearn: {}\n"
    assert sync_registry().refused == ("digits:1", "digits:2")
    assert sync_registry().refused == ()
    assert "no ONNX flavour (it has: sklearn)" in RefusedImport.objects.all()[0].reason


def test_a_version_without_files_does_not_block_others(mlflow: Mlflow) -> None:
    mlflow.missing = {"1"}
    report = sync_registry()
    assert (report.refused, report.imported) == (("digits:1",), ("digits:2",))


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_metric_that_is_not_a_number_is_omitted(mlflow: Mlflow, value: str) -> None:
    mlflow.metrics.append({"key": "loss", "value": value})
    sync_registry()
    assert ModelVersion.objects.get(number=1).metrics == {"accuracy": 0.9}


def test_a_name_that_is_not_valid_in_a_url_is_refused(mlflow: Mlflow) -> None:
    mlflow.name = "two words"
    assert sync_registry().refused == ("two words:1", "two words:2")


def test_an_artifact_beyond_the_limit_is_refused(mlflow: Mlflow, settings: Any) -> None:
    settings.ARTIFACT_BYTES_MAX = 100
    assert sync_registry().imported == ()
    assert "larger than the limit" in RefusedImport.objects.all()[0].reason


@pytest.mark.parametrize(
    "answer", [httpx.Response(503, text="busy"), httpx.Response(200, text="<html>")]
)
def test_a_registry_that_does_not_answer_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, answer: httpx.Response
) -> None:
    monkeypatch.setattr(registry, "connect", lambda: client_of(lambda request: answer))
    with pytest.raises(Unavailable, match="MLflow answered"):
        sync_registry()


def test_warm_up_requests_are_imported_with_the_version(mlflow: Mlflow) -> None:
    request = [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.5] * 4}]
    mlflow.files["warmup.json"] = json.dumps([request]).encode()
    sync_registry()
    assert ModelVersion.objects.get(number=1).warmup == [request]


def test_a_version_whose_warm_up_is_too_large_is_refused(mlflow: Mlflow) -> None:
    request = [{"name": "x", "datatype": "FP32", "shape": [9_000, 4], "data": [0.5] * 36_000}]
    mlflow.files["warmup.json"] = json.dumps([request]).encode()
    assert sync_registry().imported == ()
    assert "the maximum is 65,536" in RefusedImport.objects.all()[0].reason


def test_a_version_has_its_origin_and_author(mlflow: Mlflow) -> None:
    sync_registry()
    version = ModelVersion.objects.get(number=2)
    assert (version.source, version.registry_number) == ("mlflow", 2)
    assert (version.created_by, version.run_id) == ("dora", "r")


def test_an_unreadable_version_does_not_block_others(mlflow: Mlflow) -> None:
    mlflow.broken = {"1"}
    report = sync_registry()
    assert (report.waiting, report.imported) == (("digits:1",), ("digits:2",))
    (row,) = RefusedImport.objects.all()
    assert "the bucket is away" in row.reason
    assert row.retry_at is not None
    mlflow.broken = set()
    # Not at once, so that others are tried first, unless a person starts the sync.
    assert sync_registry().imported == ()
    assert sync_registry(is_by_hand=True).imported == ("digits:1",)
    assert not RefusedImport.objects.exists()


def test_permanently_unreadable_versions_do_not_block_others(mlflow: Mlflow) -> None:
    mlflow.numbers = list(range(1, 7))
    mlflow.broken = {"1", "2", "3"}
    assert sync_registry().imported == ()
    assert sync_registry().imported == ("digits:4", "digits:5", "digits:6")


@pytest.mark.parametrize(
    "bad",
    [
        {"creation_timestamp": "yesterday"},
        {"tags": [{"key": "k"}]},
        {"name": None, "version": {}},
        {"version": str(2**40)},
        {"description": "a\0b"},
        {"source": 7, "user_id": ["x"]},
    ],
)
def test_a_malformed_version_fails_alone(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch, bad: dict[str, Any]
) -> None:
    rows = [{**row, **(bad if row["version"] == "1" else {})} for row in mlflow.versions()]
    monkeypatch.setattr(mlflow, "versions", lambda: [None, rows[0], "x", rows[1]])
    sync_registry()
    assert ModelVersion.objects.filter(number=2).exists()
    assert [row.number for row in RefusedImport.objects.all()] in ([], [1])


def test_an_unexpected_error_is_shown_and_does_not_block_others(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.metrics = [{"key": "accuracy", "value": {"not": "a number"}}]
    read = registry.inspect_onnx
    broken = iter([OSError(28, "No space left on device")])

    def inspect(path: Any) -> Any:
        for error in broken:
            raise error
        return read(path)

    monkeypatch.setattr(registry, "inspect_onnx", inspect)
    sync_registry()
    reasons = {row.number: row.reason for row in RefusedImport.objects.all()}
    assert "No space left" in reasons[1]
    assert "in an unexpected form" in reasons[2]


def test_a_failure_to_copy_aliases_is_shown_and_does_not_block_others(mlflow: Mlflow) -> None:
    sync_registry()
    mlflow.aliases = [{"alias": "x" * 150, "version": "1"}, {"alias": "next", "version": "1"}]
    assert sync_registry().aliases == 0
    assert "cannot be copied" in RegisteredModel.objects.get().registry_problem
    mlflow.aliases = [{"alias": "next", "version": "1"}]
    sync_registry()
    assert RegisteredModel.objects.get().registry_problem == ""
    assert Alias.objects.get().name == "next"


def test_endless_pages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"registered_models": [], "next_page_token": "more"}
    monkeypatch.setattr(mlflow_client, "PAGES_MAX", 5)
    monkeypatch.setattr(
        registry, "connect", lambda: client_of(lambda r: httpx.Response(200, json=answer))
    )
    with pytest.raises(Unavailable, match="more than"):
        sync_registry()


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        ("/proc/self?x=", "is not the plain path"),
        ("file:///proc/self#x", "is not the plain path"),
        ("file://elsewhere/x", "is not the plain path"),
        ("/proc/self", "which is not read"),
        ("file:/a/../etc", "not a plain absolute path"),
        ("/a/%2e%2e/etc", "not a plain absolute path"),
        ("mlflow-artifacts:/1/../../x", "not a plain path"),
        ("mlflow-artifacts:/1/%2e%2e/x", "not a plain path"),
        ("mlflow-artifacts:/1/m?x=", "not a plain path"),
        ("http://[::1/x", "is not a valid URI"),
        ("s3://bucket/x", "only MLflow can read"),
    ],
)
def test_an_artifact_root_elsewhere_is_refused(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch, root: str, reason: str
) -> None:
    answers = mlflow.answers()
    answers["/model-versions/get-download-uri"] = {"artifact_uri": root}
    monkeypatch.setattr(mlflow, "answers", lambda: answers)
    sync_registry()
    assert reason in RefusedImport.objects.get(number=1).reason


def test_a_sync_stops_early_when_the_store_is_unreachable(mlflow: Mlflow) -> None:
    mlflow.numbers = list(range(1, 20))
    mlflow.broken = {str(number) for number in mlflow.numbers}
    assert len(sync_registry().waiting) == 3


def test_concurrent_runs_import_nothing_twice(mlflow: Mlflow) -> None:
    def meanwhile(path: str) -> None:
        # Another worker imports everything while this one starts its first download.
        if path.endswith("get-download-uri"):
            mlflow.before = lambda path: None
            assert sync_registry().imported == ("digits:1", "digits:2")

    mlflow.before = meanwhile
    assert sync_registry().imported == ()
    assert ModelVersion.objects.count() == 2


def test_the_task_does_not_fail_while_mlflow_is_unreachable(mlflow: Mlflow) -> None:
    mlflow.is_away = True
    sync_registry_task()
    mlflow.is_away = False
    sync_registry_task()
    assert ModelVersion.objects.count() == 2


def test_one_worker_at_a_time_syncs(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "SYNC_WAIT_S", 0.2)
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [SYNC_LOCK])
        sync_registry_task()
        assert not ModelVersion.objects.exists()
        with pytest.raises(Conflict, match="is running"):
            sync_now()
        with other.cursor() as cursor:
            # Before it closes: the server notices a closed session with a delay.
            cursor.execute("SELECT pg_advisory_unlock(%s)", [SYNC_LOCK])
    finally:
        other.close()
    sync_registry_task()
    assert ModelVersion.objects.count() == 2


def test_files_of_a_killed_process_are_deleted_after_a_day(mlflow: Mlflow, settings: Any) -> None:
    sync_registry()
    scratch = settings.ARTIFACT_DIR / ".import-x"
    upload = settings.ARTIFACT_DIR / ".uploads" / "x"
    for directory in (scratch, upload.parent):
        directory.mkdir()
    upload.write_bytes(b"half")
    now_s = time.time()
    assert (sweep_scratch(now_s), sweep_scratch(now_s + 90_000)) == (0, 2)
    assert not scratch.exists()
    assert not upload.exists()
    assert all(Path(row.artifact_path).exists() for row in ModelVersion.objects.all())


def test_a_version_that_exhausts_the_time_limit_is_retried_after_the_others(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = registry.inspect_onnx
    limits = iter([SoftTimeLimitExceeded()])

    def inspect(path: Any) -> Any:
        for error in limits:
            raise error
        return read(path)

    monkeypatch.setattr(registry, "inspect_onnx", inspect)
    assert sync_registry().waiting == ("digits:1",)
    assert sync_registry().imported == ("digits:2",)
