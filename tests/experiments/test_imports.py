"""Files of outcomes: every row judged for itself, files that are none refused, crashes repaired."""

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
from apps.experiments.imports.services import import_some, path_of, start_import
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


def sent(tmp: Path, content: str | bytes, name: str = "outcomes.csv") -> OutcomeImport:
    path = tmp / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return start_import(filename=name, path=path, actor=ANNA, now=NOW)


def imported(tmp: Path, content: str | bytes) -> OutcomeImport:
    made = sent(tmp, content)
    while import_some():
        pass
    made.refresh_from_db()
    return made


def good(count: int, first: int = 0) -> list[str]:
    return [f"e{i},u{i},accuracy,{i % 2},{AT}" for i in range(first, first + count)]


@pytest.fixture(autouse=True)
def day(monkeypatch: pytest.MonkeyPatch) -> None:
    make_metric()
    monkeypatch.setattr(services, "database_now", lambda: NOW)


def test_rows_are_recorded_once_and_strangers_counted(directory: Path) -> None:
    experiment = make_running(metric=make_metric("spend", "mean"))
    expose(experiment, "u1", "weak")
    first = imported(directory, text_of(*good(3), good(1)[0]))
    again = imported(directory, text_of(*good(4)))

    assert (first.state, first.rows, first.recorded, first.duplicates) == ("done", 4, 3, 1)
    assert first.strangers == 3
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
    (f"e,u,accuracy,much,{AT}", "value is no number"),
    (f'e,u,accuracy,"0,5",{AT}', "value has a comma: decimals take a point, thousands nothing"),
    ("e,u,accuracy,1,", "occurred_at is empty"),
    ("e,u,accuracy,1,yesterday", "occurred_at is no ISO 8601 instant, and no milliseconds"),
    ("e,u,accuracy,1,2026-11-24T12:00:00", "occurred_at has no time zone"),
    ("e,u,accuracy,1,2031-01-01T00:00:00Z", "occurred_at is more than an hour in the future"),
    ("e,u,accuracy,1,1999-01-01T00:00:00Z", "occurred_at is more than a year ago"),
    ("e,u,accuracy,1,99999999999999999999", "occurred_at is more than an hour in the future"),
    ("e,u,accuracy,1", "it does not have the header's 5 fields"),
    (f"e,u,accuracy,1,{AT},more", "it does not have the header's 5 fields"),
    (f"{'e' * 201},u,accuracy,1,{AT}", "event_id is longer than 200 characters"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=[reason for _, reason in BAD_ROWS])
def test_a_row_that_is_no_outcome_is_named_and_costs_the_others_nothing(
    directory: Path, row: str, reason: str
) -> None:
    made = imported(directory, text_of(good(1)[0], row, good(1, 7)[0]))

    refused = RefusedRow.objects.get()
    assert (made.state, made.rows, made.recorded) == ("done", 3, 2)
    assert refused.row == 2
    assert refused.reason.startswith(reason)
    assert sum(made.refused.values()) == 1
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
def test_the_ways_that_programs_write_csv_are_read(directory: Path, content: str) -> None:
    made = imported(directory, content)
    assert (made.state, made.recorded, made.refused) == ("done", 2, {})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"\n", "columns are missing"),
        (b"event_id,unit_id,metric,value\n", "columns are missing: occurred_at"),
        (f"{HEADER},value\n".encode(), "there twice: value"),
        (b"\xff\xfe\x00\x01", "not UTF-8"),
        (b"PAR1 but no Parquet", "no Parquet"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
    ],
)
def test_a_file_that_is_none_is_refused_and_not_kept(
    directory: Path, content: bytes, told: str
) -> None:
    with pytest.raises(BadFile, match=told):
        sent(directory, content)
    assert not OutcomeImport.objects.exists()
    assert not list((directory / "artifacts").rglob("*.*"))


def test_a_file_that_breaks_off_says_where_and_keeps_what_came_before(directory: Path) -> None:
    broken = text_of(*good(services.STEP_ROWS)).encode() + b"e\xff,u,accuracy,1,x\n"
    made = imported(directory, broken)

    assert made.state == "failed"
    assert "not UTF-8 after row" in made.error
    assert made.recorded == OutcomeRow.objects.count()


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

    made = imported(directory, path.read_bytes())

    one = OutcomeRow.objects.get(event_id="e7")
    assert (made.format, made.state) == ("parquet", "done")
    assert (made.rows, made.recorded) == (12_000, 12_000)
    assert (one.unit, one.value, one.occurred_at) == ("7", 1.0, NOW)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_may_name_the_requests_of_its_outcomes(directory: Path, kind: str) -> None:
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

    made = imported(directory, path.read_bytes())

    assert (made.recorded, made.strangers) == (2, 1)
    assert made.refused == {"request_id is not the id of a prediction": 1}
    assert {row.unit for row in OutcomeRow.objects.all()} == {"", "u1"}


def test_parquet_without_a_time_zone_is_refused(directory: Path) -> None:
    path = directory / "o.parquet"
    write(
        path,
        "SELECT 'e' AS event_id, 'u' AS unit_id, 'accuracy' AS metric, 1 AS value, "
        "now()::TIMESTAMP AS occurred_at",
    )
    with pytest.raises(BadFile, match="no time zone"):
        sent(directory, path.read_bytes())


def test_who_goes_on_after_a_crash_records_each_row_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sent(directory, text_of(*good(12_000), "e,u,accuracy,9,x"))
    real, steps = ingestion.record_outcomes, []

    def crash(*given: Any) -> Any:
        steps.append(given)
        if len(steps) == 2:
            raise RuntimeError("killed")
        return real(*given)

    monkeypatch.setattr(services, "record_outcomes", crash)
    with pytest.raises(RuntimeError), transaction.atomic():
        import_some()
    OutcomeImport.objects.filter(pk=made.pk).update(state="running")
    while import_some():
        pass

    made.refresh_from_db()
    assert (made.state, made.rows, made.recorded) == ("done", 12_001, 12_000)
    assert RefusedRow.objects.count() == 1


def test_two_workers_at_one_file_count_each_row_once(directory: Path) -> None:
    made = sent(directory, text_of(*good(10)))
    stale = OutcomeImport.objects.get(pk=made.pk)
    (chunk,) = read_chunks(path_of(made.pk), "csv", 0)
    services._record(made, chunk)

    services._record(stale, chunk)

    made.refresh_from_db()
    assert (made.rows, made.recorded, made.duplicates, stale.rows) == (10, 10, 0, 10)


def test_a_worker_without_the_file_says_what_to_share(directory: Path) -> None:
    made = sent(directory, text_of(*good(1)))
    path_of(made.pk).unlink()
    refresh_results_task()
    made.refresh_from_db()
    assert made.state == "failed"
    assert "INTERLOCK_ARTIFACT_DIR" in made.error


@given(st.lists(st.lists(st.text(max_size=8), max_size=7), max_size=6))
def test_any_text_is_read_or_refused_by_name(tmp_path_factory: Any, rows: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("any") / "o.csv"
    text = io.StringIO()
    csv.writer(text).writerows([HEADER.split(","), *rows])
    path.write_bytes(text.getvalue().encode("utf-8", "replace"))
    try:
        check_file(path, format_of(path))
        chunks = list(read_chunks(path, "csv", 0))
    except BadFile:
        return
    services._read([row for chunk in chunks for row in chunk])


@pytest.fixture
def api() -> APIClient:
    user = User.objects.create_user("anna")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client = APIClient()
    client.force_authenticate(user)
    return client


def upload(content: str) -> SimpleUploadedFile:
    return SimpleUploadedFile("o.csv", content.encode())


def test_rest_takes_a_file_follows_it_and_lists_what_was_refused(api: APIClient) -> None:
    made = api.post(
        API, {"file": upload(text_of(*good(2), "=1,u,accuracy,7,x"))}, format="multipart"
    )
    refresh_results_task()
    one = f"{API}{made.json()['id']}/"

    assert made.status_code == 202
    assert api.get(one).json()["recorded"] == 2
    assert api.get(f"{one}refused/").json()["results"][0]["row"] == 3
    lines = api.get(f"{one}refused/csv/").content.decode().splitlines()
    assert lines[1].startswith("3,'=1,accuracy,\"occurred_at is no ISO")
    assert api.get(API).json()["count"] == 1


def test_rest_refuses_what_is_no_file_too_large_or_not_allowed(
    api: APIClient, settings: Any
) -> None:
    viewer = APIClient()
    viewer.force_authenticate(User.objects.create_user("vera"))
    settings.IMPORT_BYTES_MAX = 50
    answers = [
        api.post(API, {"file": upload(text_of(*good(9)))}, format="multipart"),
        api.post(API, {"file": upload("a,b\n")}, format="multipart"),
        api.post(API, {}, format="multipart"),
        viewer.post(API, {"file": upload(text_of(*good(1)))}, format="multipart"),
        api.get(f"{API}00000000-0000-0000-0000-000000000000/refused/"),
        api.get(f"{API}x/"),
    ]
    assert [answer.status_code for answer in answers] == [413, 400, 400, 403, 404, 404]
    assert "INTERLOCK_IMPORT_BYTES_MAX" in answers[0].json()["error"]["message"]


def test_the_page_takes_a_file_and_shows_its_rows(client: Client) -> None:
    user = User.objects.create_user("otto")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    assert "No file yet" in client.get("/outcomes/").content.decode()
    bad = client.post("/outcomes/", {"file": upload("a,b\n")})
    made = client.post("/outcomes/", {"file": upload(text_of(*good(1), "e,u,no,1,x"))}, follow=True)
    refresh_results_task()
    shown = client.get(made.redirect_chain[-1][0]).content.decode()

    assert bad.status_code == 400
    assert "columns are missing" in bad.content.decode()
    assert "being read" in made.content.decode()
    assert "occurred_at is no ISO 8601 instant" in shown
    assert client.get(f"{made.redirect_chain[-1][0]}refused.csv").status_code == 200
