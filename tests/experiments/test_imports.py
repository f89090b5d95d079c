"""Imports of outcomes: rows are checked one by one, invalid files refused, crashes survived."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import duckdb
import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.test import APIClient

from apps.experiments import ingestion
from apps.experiments.imports import services
from apps.experiments.imports.files import BadFile, check_file, format_of, read_chunks
from apps.experiments.imports.services import continue_import, path_of, start_import
from apps.experiments.models import OutcomeImport, OutcomeRow, RefusedOutcomes, RefusedRow
from apps.experiments.tasks import refresh_results_task
from apps.models.models import ModelRole, Role
from tests.experiments.factories import (
    ANNA,
    NOW,
    NOW_MS,
    expose,
    make_metric,
    make_model,
    make_running,
)

pytestmark = pytest.mark.django_db
HEADER = "event_id,unit_id,metric,value,occurred_at"
AT = NOW.isoformat().replace("+00:00", "Z")
API = "/api/v1/outcome-imports/"


@pytest.fixture(autouse=True)
def directory(settings: Any, tmp_path: Path) -> Path:
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    return tmp_path


def text_of(*rows: str, header: str = HEADER) -> str:
    return "\n".join((header, *rows)) + "\n"


def start(tmp: Path, content: str | bytes, name: str = "outcomes.csv") -> OutcomeImport:
    path = tmp / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return start_import(filename=name, path=path, actor=ANNA, now=NOW)


def imported(tmp: Path, content: str | bytes) -> OutcomeImport:
    row = start(tmp, content)
    while continue_import():
        pass
    row.refresh_from_db()
    return row


def good(count: int, first: int = 0) -> list[str]:
    return [f"e{i},u{i},accuracy,{i % 2},{AT}" for i in range(first, first + count)]


@pytest.fixture(autouse=True)
def day(monkeypatch: pytest.MonkeyPatch) -> None:
    make_metric()
    monkeypatch.setattr(services, "database_now", lambda: NOW)


def test_rows_are_recorded_once_and_unexposed_units_counted(directory: Path) -> None:
    experiment = make_running(metric=make_metric("spend", "mean"))
    expose(experiment, "u1", "weak")
    first = imported(directory, text_of(*good(3), good(1)[0]))
    again = imported(directory, text_of(*good(4)))

    assert (first.state, first.rows, first.recorded, first.duplicates) == ("done", 4, 3, 1)
    assert first.unexposed == 3
    assert (again.recorded, again.duplicates) == (1, 3)
    assert OutcomeRow.objects.count() == 4
    assert not path_of(first.pk).exists()


BAD_ROWS = [
    (f",u,accuracy,1,{AT}", "event_id is empty"),
    (f"e,,accuracy,1,{AT}", "unit_id is empty"),
    (f"e,u,nothing,1,{AT}", "unknown metric"),
    (f"e,u,accuracy,2,{AT}", "value of a proportion is neither 0 nor 1"),
    (f"e,u,accuracy,nan,{AT}", "value is not a finite number"),
    (f"e,u,accuracy,,{AT}", "value is empty"),
    (f"e,u,accuracy,much,{AT}", "value is not a number"),
    (f'e,u,accuracy,"0,5",{AT}', "value contains a comma: use a decimal point and no separators"),
    ("e,u,accuracy,1,", "occurred_at is empty"),
    ("e,u,accuracy,1,yesterday", "occurred_at is not a valid ISO 8601 timestamp or Unix time"),
    ("e,u,accuracy,1,2026-11-24T12:00:00", "occurred_at has no time zone"),
    ("e,u,accuracy,1,2031-01-01T00:00:00Z", "occurred_at is more than an hour in the future"),
    ("e,u,accuracy,1,1999-01-01T00:00:00Z", "occurred_at is more than a year ago"),
    ("e,u,accuracy,1,99999999999999999999", "occurred_at is more than an hour in the future"),
    ("e,u,accuracy,1", "the row does not have the header's 5 fields"),
    (f"e,u,accuracy,1,{AT},more", "the row does not have the header's 5 fields"),
    (f"{'e' * 201},u,accuracy,1,{AT}", "event_id is longer than 200 characters"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=[reason for _, reason in BAD_ROWS])
def test_an_invalid_row_is_refused_and_does_not_affect_the_others(
    directory: Path, row: str, reason: str
) -> None:
    outcome_import = imported(directory, text_of(good(1)[0], row, good(1, 7)[0]))

    refused = RefusedRow.objects.get()
    counts = (outcome_import.state, outcome_import.rows, outcome_import.recorded)
    assert counts == ("done", 3, 2)
    assert refused.row == 2
    assert refused.reason.startswith(reason)
    assert sum(outcome_import.refused.values()) == 1
    assert RefusedOutcomes.objects.get().count == 1


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + text_of(*good(2)),
        text_of(*good(2)).replace(",", ";"),
        text_of(*good(2)).replace(",", "\t"),
        text_of(*good(2)).replace("\n", "\r\n"),
        text_of(*(f"{row},x" for row in good(2)), header=f"{HEADER},extra"),
        text_of(*good(2), header=" Event_ID , UNIT_ID,metric,value,occurred_at"),
        text_of(f'"e\n1",u,accuracy,true,{NOW_MS}', f"e2,u,accuracy,False,{AT}"),
    ],
    ids=["bom", "semicolons", "tabs", "crlf", "more-columns", "capitals", "quoted-newline"],
)
def test_common_csv_dialects_are_read(directory: Path, content: str) -> None:
    row = imported(directory, content)
    assert (row.state, row.recorded, row.refused) == ("done", 2, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n", "missing columns"),
        (b"event_id,unit_id,metric,value\n", "missing columns: occurred_at"),
        (f"{HEADER},value\n".encode(), "duplicate columns: value"),
        (b"\xff\xfe\x00\x01", "not valid UTF-8"),
        (b"PAR1 but no Parquet", "not valid Parquet"),
        (b"\x89PNG\r\n\x1a\n", "not valid UTF-8"),
    ],
)
def test_an_invalid_file_is_refused_and_not_stored(
    directory: Path, content: bytes, message: str
) -> None:
    with pytest.raises(BadFile, match=message):
        start(directory, content)
    assert not OutcomeImport.objects.exists()
    assert not list((directory / "artifacts").rglob("*.*"))


def test_a_file_with_a_broken_row_fails_and_keeps_the_rows_before(directory: Path) -> None:
    broken = text_of(*good(services.STEP_ROWS)).encode() + b"e\xff,u,accuracy,1,x\n"
    row = imported(directory, broken)

    assert row.state == "failed"
    assert "not valid UTF-8 after row" in row.error
    assert row.recorded == OutcomeRow.objects.count()


def write(path: Path, query: str) -> None:
    with duckdb.connect() as engine:
        engine.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")


def test_parquet_is_read_with_its_types(directory: Path) -> None:
    path = directory / "o.parquet"
    write(
        path,
        "SELECT 'e' || i AS event_id, i AS unit_id, 'accuracy' AS metric, (i % 2)::DECIMAL(4,1) "
        f"AS value, TIMESTAMPTZ '{AT}' AS occurred_at, 1 AS more FROM range(12000) AS r(i)",
    )

    row = imported(directory, path.read_bytes())

    one = OutcomeRow.objects.get(event_id="e7")
    assert (row.format, row.state) == ("parquet", "done")
    assert (row.rows, row.recorded) == (12_000, 12_000)
    assert (one.unit, one.value, one.occurred_at) == ("7", 1.0, NOW)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_may_hold_request_ids(directory: Path, kind: str) -> None:
    make_model()
    ids = [f"digits:2:a-{NOW_MS * 10**6:x}{unit}" for unit in ("", ":dTE")] + ["mine"]
    path = directory / "o.parquet"
    if kind == "csv":
        rows = [f"e{i},,accuracy,1,{AT},{one}" for i, one in enumerate(ids)]
        path.write_text(text_of(*rows, header=f"{HEADER},request_id"))
    else:
        rows = [f"('e{i}', '', 'accuracy', 1, TIMESTAMPTZ '{AT}', '{one}')"
                for i, one in enumerate(ids)]  # fmt: skip
        write(path, f"SELECT * FROM (VALUES {', '.join(rows)}) AS t({HEADER},request_id)")

    row = imported(directory, path.read_bytes())

    assert (row.recorded, row.unexposed) == (2, 1)
    assert row.refused == {"request_id is not the id of a prediction": 1}
    assert {row.unit for row in OutcomeRow.objects.all()} == {"", "u1"}


def test_parquet_without_a_time_zone_is_refused(directory: Path) -> None:
    path = directory / "o.parquet"
    write(
        path,
        "SELECT 'e' AS event_id, 'u' AS unit_id, 'accuracy' AS metric, 1 AS value, "
        "now()::TIMESTAMP AS occurred_at",
    )
    with pytest.raises(BadFile, match="no time zone"):
        start(directory, path.read_bytes())


def test_after_a_crash_each_row_is_recorded_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = start(directory, text_of(*good(12_000), "e,u,accuracy,9,x"))
    real, steps = ingestion.record_outcomes, []

    def crash(*arguments: Any) -> Any:
        steps.append(arguments)
        if len(steps) == 2:
            raise RuntimeError("killed")
        return real(*arguments)

    monkeypatch.setattr(services, "record_outcomes", crash)
    with pytest.raises(RuntimeError), transaction.atomic():
        continue_import()
    OutcomeImport.objects.filter(pk=row.pk).update(state="running")
    while continue_import():
        pass

    row.refresh_from_db()
    assert (row.state, row.rows, row.recorded) == ("done", 12_001, 12_000)
    assert RefusedRow.objects.count() == 1


def test_two_workers_at_one_file_count_each_row_once(directory: Path) -> None:
    row = start(directory, text_of(*good(10)))
    stale = OutcomeImport.objects.get(pk=row.pk)
    (chunk,) = read_chunks(path_of(row.pk), "csv", 0)
    services._record(row, chunk)

    services._record(stale, chunk)

    row.refresh_from_db()
    assert (row.rows, row.recorded, row.duplicates, stale.rows) == (10, 10, 0, 10)


def test_a_worker_without_the_file_names_the_setting(directory: Path) -> None:
    row = start(directory, text_of(*good(1)))
    path_of(row.pk).unlink()
    refresh_results_task()
    row.refresh_from_db()
    assert row.state == "failed"
    assert "INTERLOCK_ARTIFACT_DIR" in row.error


@given(st.lists(st.lists(st.text(max_size=8), max_size=7), max_size=6))
def test_any_text_is_read_or_refused(tmp_path_factory: Any, rows: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("any") / "o.csv"
    text = io.StringIO()
    csv.writer(text).writerows([HEADER.split(","), *rows])
    path.write_bytes(text.getvalue().encode("utf-8", "replace"))
    try:
        check_file(path, format_of(path))
        chunks = list(read_chunks(path, "csv", 0))
    except BadFile:
        return
    services._parse([row for chunk in chunks for row in chunk])


@pytest.fixture
def api() -> APIClient:
    user = User.objects.create_user("anna")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client = APIClient()
    client.force_authenticate(user)
    return client


def upload(content: str) -> SimpleUploadedFile:
    return SimpleUploadedFile("o.csv", content.encode())


def test_rest_imports_a_file_and_lists_refused_rows(api: APIClient) -> None:
    response = api.post(
        API, {"file": upload(text_of(*good(2), "=1,u,accuracy,7,x"))}, format="multipart"
    )
    refresh_results_task()
    one = f"{API}{response.json()['id']}/"

    assert response.status_code == 202
    assert api.get(one).json()["recorded"] == 2
    assert api.get(f"{one}refused/").json()["results"][0]["row"] == 3
    lines = api.get(f"{one}refused/csv/").content.decode().splitlines()
    assert lines[1].startswith("3,'=1,accuracy,occurred_at is not a valid ISO")
    assert api.get(API).json()["count"] == 1


def test_rest_refuses_missing_too_large_and_forbidden_files(api: APIClient, settings: Any) -> None:
    viewer = APIClient()
    viewer.force_authenticate(User.objects.create_user("vera"))
    settings.IMPORT_BYTES_MAX = 50
    responses = [
        api.post(API, {"file": upload(text_of(*good(9)))}, format="multipart"),
        api.post(API, {"file": upload("a,b\n")}, format="multipart"),
        api.post(API, {}, format="multipart"),
        viewer.post(API, {"file": upload(text_of(*good(1)))}, format="multipart"),
        api.get(f"{API}00000000-0000-0000-0000-000000000000/refused/"),
        api.get(f"{API}x/"),
    ]
    assert [response.status_code for response in responses] == [413, 400, 400, 403, 404, 404]
    assert "INTERLOCK_IMPORT_BYTES_MAX" in responses[0].json()["error"]["message"]


def test_the_page_imports_a_file_and_shows_its_rows(client: Client) -> None:
    user = User.objects.create_user("otto")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    assert "No imports yet" in client.get("/outcomes/").content.decode()
    bad = client.post("/outcomes/", {"file": upload("a,b\n")})
    good_file = client.post(
        "/outcomes/", {"file": upload(text_of(*good(1), "e,u,no,1,x"))}, follow=True
    )
    refresh_results_task()
    shown = client.get(good_file.redirect_chain[-1][0]).content.decode()

    assert bad.status_code == 400
    assert "missing columns" in bad.content.decode()
    assert "a worker reads it" in good_file.content.decode()
    assert "occurred_at is not a valid ISO 8601 timestamp" in shown
    assert client.get(f"{good_file.redirect_chain[-1][0]}refused.csv").status_code == 200
