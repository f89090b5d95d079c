"""Queries of external services: their content, their time, and the effect of any answer."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.rollouts import metric_providers
from apps.rollouts.check_kinds import PROMETHEUS, WEBHOOK, CheckDocument
from apps.rollouts.evaluation import repeat_check
from apps.rollouts.metric_providers import observe_database, query_services
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.phases import set_phase
from apps.rollouts.states import Phase
from tests.rollouts.factories import ANNA, send
from tests.rollouts.outside import (
    IS_REAL,
    CannedAnswer,
    free_port,
    json_answer,
    look,
    make_checked_rollout,
    prometheus,
    query_of,
    service,
    vector,
)

pytestmark = pytest.mark.django_db

QUERY = 'errors{model="{model}",version="{version}"} - errors{version="{stable}"}'


# Results for the metrics of `outside`: query, verdict, part of the reason.
KNOWN = [
    ("vector(0.25)", "pass", "0.25 measured, at most 0.5 allowed"),
    ("scalar(vector(0.75))", "fail", "0.75 measured, at most 0.5 allowed"),
    ('requests_failed{model="{model}",version="{version}"}', "pass", "0.125 measured"),
    ("requests_failed", "provider-error", "returned 2 series"),
    ("requests_fialed", "no-data", "the result is empty"),
    ("vector(0)/vector(0)", "no-data", "the value is NaN"),
    ("requests_failed[5m]", "provider-error", "result type matrix is not a number"),
    ("requests_failed{modle}", "provider-error", "returned 400: bad_data: "),
]


def query_check(query: str = QUERY, **fields: Any) -> CheckDocument:
    return CheckDocument(check=PROMETHEUS, settings={"query": query, "at_most": 0.5}, **fields)


def hook(url: str, **fields: Any) -> CheckDocument:
    return CheckDocument(check=WEBHOOK, settings={"url": url}, **fields)


def only(rows: list[Evaluation]) -> Evaluation:
    (row,) = rows
    again = repeat_check(row)
    assert (again.verdict, again.reason, again.evidence) == (row.verdict, row.reason, row.evidence)
    return row


def test_prometheus_is_queried_with_the_rollouts_versions(settings: Any) -> None:
    with service(lambda _: vector("0.25")) as outside:
        settings.PROMETHEUS_URL = outside.url
        row = only(look(make_checked_rollout(query_check())))
    path, _, body = outside.requests[0]
    expected = 'errors{model="digits",version="2"} - errors{version="1"}'
    assert (path, query_of(body)) == ("/api/v1/query", expected)
    assert (row.verdict, row.reason) == ("pass", f"0.25 measured, at most 0.5 allowed: {expected}")
    assert row.evidence == {"query": expected, "value": 0.25, "bound": 0.5}


@pytest.mark.parametrize(
    ("mode", "phase"),
    [("guardrail", "rolling_back"), ("signal", "paused"), ("dry-run", "baking")],
)
@pytest.mark.parametrize("kind", [PROMETHEUS, WEBHOOK])
def test_a_failed_guardrail_rolls_back_a_signal_pauses_a_dry_run_records(
    settings: Any, kind: str, mode: Any, phase: str
) -> None:
    bad = {PROMETHEUS: vector("0.75"), WEBHOOK: json_answer(verdict="fail", reason="sales fell")}[
        kind
    ]
    with service(lambda _: bad) as outside:
        # The address of our Prometheus is not allowed for a webhook.
        settings.PROMETHEUS_URL = outside.url if kind == PROMETHEUS else ""
        checks = {PROMETHEUS: query_check(mode=mode), WEBHOOK: hook(outside.url, mode=mode)}
        rollout = make_checked_rollout(checks[kind])
        assert only(look(rollout)).verdict == "fail"
    assert rollout.phase == phase


def test_a_webhook_gets_the_step_and_a_signature(settings: Any) -> None:
    from apps.notifications.signing import new_secret, sign

    settings.WEBHOOK_SECRET = new_secret()
    with service(lambda _: json_answer(verdict="pass", reason="sales are up")) as outside:
        rollout = make_checked_rollout(hook(f"{outside.url}/judge?token=t"))
        row = only(look(rollout))
    path, headers, body = outside.requests[0]
    document = json.loads(body)
    assert path == "/judge?token=t"
    assert document.pop("at")
    assert document == {
        "rollout": str(rollout.pk), "check": "webhook", "model": "digits", "target": 2,
        "stable": 1, "step": 0, "weight_bp": 500,
    }  # fmt: skip
    stamp = int(headers["webhook-timestamp"])
    signature = sign(settings.WEBHOOK_SECRET, headers["webhook-id"], stamp, body)
    assert headers["webhook-signature"] == signature
    assert row.reason == f"webhook at {outside.url} returned pass: sales are up"


def test_without_a_secret_a_webhook_is_unsigned() -> None:
    with service(lambda _: json_answer(verdict="pass")) as outside:
        look(make_checked_rollout(hook(outside.url)))
    assert "webhook-signature" not in outside.requests[0][1]
    assert "webhook-id" in outside.requests[0][1]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (json_answer(verdict="provider-error"), "did not return"),
        (json_answer(verdict="great"), "did not return"),
        (json_answer(reason="?"), "did not return"),
        (CannedAnswer(body=b"pass"), "did not return"),
        (
            CannedAnswer(body=b'{"verdict": "pass", "reason": "' + b"x" * 20_000 + b'"}'),
            "did not return",
        ),
        (CannedAnswer(status=500, body=b'{"verdict": "fail"}'), "returned 500"),
        (CannedAnswer(status=302, headers={"location": "http://127.0.0.1:1/"}), "returned 302"),
    ],
)
def test_any_other_answer_of_a_webhook_is_a_provider_error(
    answer: CannedAnswer, problem: str
) -> None:
    with service(lambda _: answer) as outside:
        rollout = make_checked_rollout(hook(outside.url))
        row = only(look(rollout))
    assert row.verdict == "provider-error"
    assert problem in row.reason
    assert rollout.phase == Phase.BAKING


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (
            CannedAnswer(status=307, headers={"location": "/x"}),
            "returned 307: redirects are not followed",
        ),
        (CannedAnswer(body=b"x" * 300_000), "sent more than 262144 bytes"),
        (CannedAnswer(status=500), "returned 500 with a body that is not from the Prometheus API"),
    ],
)
def test_any_other_answer_of_prometheus_is_a_provider_error(
    settings: Any, answer: CannedAnswer, problem: str
) -> None:
    with service(lambda _: answer) as outside:
        settings.PROMETHEUS_URL = outside.url
        rollout = make_checked_rollout(query_check())
        row = only(look(rollout))
    assert (row.verdict, row.reason) == ("provider-error", f"Prometheus at {outside.url} {problem}")
    assert rollout.phase == Phase.BAKING


def test_all_services_are_queried_at_once_and_none_delays_the_tick(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_providers, "QUERIES_S", 1.0)
    with service(lambda _: CannedAnswer(wait_s=2)) as slow, service(lambda _: vector("0")) as quick:
        settings.PROMETHEUS_URL = quick.url
        hooks = [hook(slow.url, name=f"slow-{n}") for n in range(20)]
        rollout = make_checked_rollout(*hooks, query_check())
        began = time.monotonic()
        rows = look(rollout)
        assert time.monotonic() - began < 1.9
    assert [row.verdict for row in rows] == ["provider-error"] * 20 + ["pass"]
    assert "no answer within 1 s" in rows[0].reason


def has_queries(rollout: Rollout, **columns: Any) -> bool:
    Rollout.objects.update(**columns)
    rollout.refresh_from_db()
    return bool(query_services([rollout], database_now()))


def test_only_due_rollouts_are_queried(settings: Any) -> None:
    now, soon = database_now(), timedelta(seconds=5)
    rollout = make_checked_rollout(query_check())
    assert has_queries(rollout, next_check_at=now - soon)
    assert not has_queries(rollout, next_check_at=now + soon)
    assert not has_queries(rollout, next_check_at=None)
    set_phase(rollout, Phase.PAUSED, "look", ANNA, now)
    assert has_queries(rollout, next_check_at=None)
    assert not has_queries(rollout, next_check_at=now - soon, phase=Phase.PROMOTING)


def test_a_rollout_without_service_checks_has_no_queries() -> None:
    rollout = make_checked_rollout(CheckDocument(check="smoke"))
    assert not has_queries(rollout, next_check_at=database_now())


def test_an_error_in_one_rollout_does_not_affect_others(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = make_checked_rollout(query_check())
    Rollout.objects.update(next_check_at=database_now(), plan_document={"steps": "broken"})
    rollout.refresh_from_db()
    assert query_services([rollout], database_now()) == {}
    assert "rollout.service_queries_failed" in caplog.text


def test_a_paused_rollout_is_still_guarded(settings: Any) -> None:
    answers = [vector("0"), vector("9")]
    with service(lambda _: answers.pop(0)) as outside:
        settings.PROMETHEUS_URL = outside.url
        rollout = make_checked_rollout(query_check())
        look(rollout)
        set_phase(rollout, Phase.PAUSED, "look", ANNA, database_now())
        assert only(look(rollout)).verdict == "fail"
    assert rollout.phase == Phase.ROLLING_BACK


@pytest.mark.parametrize("_", [IS_REAL])
def test_a_real_prometheus_is_read_and_its_failure_holds(
    settings: Any, tmp_path: Path, _: str
) -> None:
    checks = [
        query_check(query, name=str(n), mode="dry-run") for n, (query, *_) in enumerate(KNOWN)
    ]
    with prometheus(tmp_path) as provider:
        settings.PROMETHEUS_URL = provider.url
        rollout = make_checked_rollout(*checks)
        for row, (_query, verdict, part) in zip(look(rollout), KNOWN, strict=True):
            assert (row.verdict, part in row.reason) == (verdict, True), row.reason
        provider.kill()
        rows = look(rollout)
    assert {row.verdict for row in rows} == {"provider-error"}
    assert "cannot be reached: [Errno 111] Connection refused" in rows[0].reason
    assert (rollout.phase, rollout.weight_bp) == (Phase.BAKING, 500)


def test_an_unreachable_address_is_reported(settings: Any) -> None:
    settings.PROMETHEUS_URL = f"http://127.0.0.1:{free_port()}"
    row = only(look(make_checked_rollout(query_check())))
    assert row.verdict == "provider-error"
    assert row.reason.startswith(f"Prometheus at {settings.PROMETHEUS_URL} cannot be reached: ")


def test_an_error_in_a_check_is_a_provider_error_of_that_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("internal error")

    rollout = make_checked_rollout(query_check())
    monkeypatch.setitem(metric_providers.SERVICES, PROMETHEUS, broken)
    Rollout.objects.update(next_check_at=database_now())
    rollout.refresh_from_db()
    observations = query_services([rollout], database_now())
    assert observations[rollout.pk].observations == {
        PROMETHEUS: {"problem": "internal error in the check: RuntimeError"}
    }


def test_a_smoke_request_without_an_answer_is_an_error_however_it_ended() -> None:
    rollout = make_checked_rollout(CheckDocument(check="smoke"))
    ends = {"answered": 5, "failed": 1, "expired": 2, "shed": 1, "abandoned": 1, "refused": 4}
    number = rollout.target.number
    at = database_now()
    windows = {"variant": "explicit", "at": at}
    send("digits", number, **windows, requests=6, errors=1, assigned_requests=14, ends=ends)
    send("digits", number, **windows, requests=3, errors=1)
    send("digits", number, at=at, requests=90, errors=9)
    observations = observe_database(
        rollout, [CheckDocument(check="smoke")], at + timedelta(seconds=1)
    )
    assert observations == {"smoke": {"requests": 13, "errors": 6}}
