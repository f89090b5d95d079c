"""What services outside are asked, when, and what becomes of a rollout whatever they answer."""

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
from apps.rollouts.evaluation import repeat_answer
from apps.rollouts.metric_providers import ask_services, observe_database
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.phases import set_phase
from apps.rollouts.states import Phase
from tests.rollouts.factories import ANNA, send
from tests.rollouts.outside import (
    IS_REAL,
    Reply,
    free_port,
    look,
    make_asking,
    prometheus,
    query_of,
    says,
    service,
    vector,
)

pytestmark = pytest.mark.django_db

QUERY = 'errors{model="{model}",version="{version}"} - errors{version="{stable}"}'


# What the metrics of `outside` give, and what becomes of it: query, verdict, words.
KNOWN = [
    ("vector(0.25)", "pass", "is 0.25, at most 0.5"),
    ("scalar(vector(0.75))", "fail", "is 0.75, at most 0.5"),
    ('requests_failed{model="{model}",version="{version}"}', "pass", "is 0.125"),
    ("requests_failed", "provider-error", "answers 2 series"),
    ("requests_fialed", "no-data", "the answer is empty"),
    ("vector(0)/vector(0)", "no-data", "the answer is NaN"),
    ("requests_failed[5m]", "provider-error", "a matrix is not a number"),
    ("requests_failed{modle}", "provider-error", "answers 400: bad_data: "),
]


def query_check(query: str = QUERY, **fields: Any) -> CheckDocument:
    return CheckDocument(check=PROMETHEUS, settings={"query": query, "at_most": 0.5}, **fields)


def hook(url: str, **fields: Any) -> CheckDocument:
    return CheckDocument(check=WEBHOOK, settings={"url": url}, **fields)


def only(rows: list[Evaluation]) -> Evaluation:
    (row,) = rows
    again = repeat_answer(row)
    assert (again.verdict, again.reason, again.evidence) == (row.verdict, row.reason, row.evidence)
    return row


def test_prometheus_is_asked_about_this_rollout(settings: Any) -> None:
    with service(lambda _: vector("0.25")) as outside:
        settings.PROMETHEUS_URL = outside.url
        row = only(look(make_asking(query_check())))
    path, _, body = outside.requests[0]
    asked = 'errors{model="digits",version="2"} - errors{version="1"}'
    assert (path, query_of(body)) == ("/api/v1/query", asked)
    assert (row.verdict, row.reason) == ("pass", f"{asked} is 0.25, at most 0.5")
    assert row.evidence == {"query": asked, "value": 0.25, "bound": 0.5}


@pytest.mark.parametrize(
    ("mode", "phase"),
    [("guardrail", "rolling_back"), ("signal", "paused"), ("dry-run", "baking")],
)
@pytest.mark.parametrize("kind", [PROMETHEUS, WEBHOOK])
def test_a_failed_guardrail_rolls_back_a_signal_pauses_a_dry_run_records(
    settings: Any, kind: str, mode: Any, phase: str
) -> None:
    bad = {PROMETHEUS: vector("0.75"), WEBHOOK: says(verdict="fail", reason="sales fell")}[kind]
    with service(lambda _: bad) as outside:
        # The same address may not be asked as a webhook while it is our Prometheus.
        settings.PROMETHEUS_URL = outside.url if kind == PROMETHEUS else ""
        checks = {PROMETHEUS: query_check(mode=mode), WEBHOOK: hook(outside.url, mode=mode)}
        rollout = make_asking(checks[kind])
        assert only(look(rollout)).verdict == "fail"
    assert rollout.phase == phase


def test_a_webhook_is_told_of_the_step_and_signed(settings: Any) -> None:
    from apps.notifications.signing import new_secret, sign

    settings.WEBHOOK_SECRET = new_secret()
    with service(lambda _: says(verdict="pass", reason="sales are up")) as outside:
        rollout = make_asking(hook(f"{outside.url}/judge?token=t"))
        row = only(look(rollout))
    path, headers, body = outside.requests[0]
    told = json.loads(body)
    assert path == "/judge?token=t"
    assert told.pop("at")
    assert told == {
        "rollout": str(rollout.pk), "check": "webhook", "model": "digits", "target": 2,
        "stable": 1, "step": 0, "weight_bp": 500,
    }  # fmt: skip
    stamp = int(headers["webhook-timestamp"])
    signature = sign(settings.WEBHOOK_SECRET, headers["webhook-id"], stamp, body)
    assert headers["webhook-signature"] == signature
    assert row.reason == f"webhook at {outside.url} says pass: sales are up"


def test_without_a_secret_a_webhook_is_asked_unsigned() -> None:
    with service(lambda _: says(verdict="pass")) as outside:
        look(make_asking(hook(outside.url)))
    assert "webhook-signature" not in outside.requests[0][1]
    assert "webhook-id" in outside.requests[0][1]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (says(verdict="provider-error"), "does not answer"),
        (says(verdict="great"), "does not answer"),
        (says(reason="?"), "does not answer"),
        (Reply(body=b"pass"), "does not answer"),
        (Reply(body=b'{"verdict": "pass", "reason": "' + b"x" * 20_000 + b'"}'), "does not answer"),
        (Reply(status=500, body=b'{"verdict": "fail"}'), "answers 500"),
        (Reply(status=302, headers={"location": "http://127.0.0.1:1/"}), "answers 302"),
    ],
)
def test_any_other_answer_of_a_webhook_is_its_error_and_holds(told: Reply, why: str) -> None:
    with service(lambda _: told) as outside:
        rollout = make_asking(hook(outside.url))
        row = only(look(rollout))
    assert row.verdict == "provider-error"
    assert why in row.reason
    assert rollout.phase == Phase.BAKING


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (Reply(status=307, headers={"location": "/x"}), "answers 307: no redirect is followed"),
        (Reply(body=b"x" * 300_000), "answers more than 262144 bytes"),
        (Reply(status=500), "answers 500 with what is not of Prometheus' API"),
    ],
)
def test_any_other_answer_of_prometheus_is_its_error_and_holds(
    settings: Any, told: Reply, why: str
) -> None:
    with service(lambda _: told) as outside:
        settings.PROMETHEUS_URL = outside.url
        rollout = make_asking(query_check())
        row = only(look(rollout))
    assert (row.verdict, row.reason) == ("provider-error", f"Prometheus at {outside.url} {why}")
    assert rollout.phase == Phase.BAKING


def test_all_are_asked_at_once_and_none_holds_up_the_tick(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_providers, "ASKING_S", 1.0)
    with service(lambda _: Reply(wait_s=2)) as slow, service(lambda _: vector("0")) as quick:
        settings.PROMETHEUS_URL = quick.url
        hooks = [hook(slow.url, name=f"slow-{n}") for n in range(20)]
        rollout = make_asking(*hooks, query_check())
        began = time.monotonic()
        rows = look(rollout)
        assert time.monotonic() - began < 1.9
    assert [row.verdict for row in rows] == ["provider-error"] * 20 + ["pass"]
    assert "no answer within 1 s" in rows[0].reason


def asked_of(rollout: Rollout, **columns: Any) -> bool:
    Rollout.objects.update(**columns)
    rollout.refresh_from_db()
    return bool(ask_services([rollout], database_now()))


def test_only_what_is_due_is_asked(settings: Any) -> None:
    now, soon = database_now(), timedelta(seconds=5)
    rollout = make_asking(query_check())
    assert asked_of(rollout, next_check_at=now - soon)
    assert not asked_of(rollout, next_check_at=now + soon)
    assert not asked_of(rollout, next_check_at=None)
    set_phase(rollout, Phase.PAUSED, "look", ANNA, now)
    assert asked_of(rollout, next_check_at=None)
    assert not asked_of(rollout, next_check_at=now - soon, phase=Phase.PROMOTING)


def test_a_rollout_without_such_checks_is_asked_about_by_nobody() -> None:
    rollout = make_asking(CheckDocument(check="smoke"))
    assert not asked_of(rollout, next_check_at=database_now())


def test_one_rollout_that_cannot_be_asked_about_costs_the_others_nothing(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = make_asking(query_check())
    Rollout.objects.update(next_check_at=database_now(), plan_document={"steps": "broken"})
    rollout.refresh_from_db()
    assert ask_services([rollout], database_now()) == {}
    assert "rollout.asking_failed" in caplog.text


def test_a_paused_rollout_is_still_guarded(settings: Any) -> None:
    answers = [vector("0"), vector("9")]
    with service(lambda _: answers.pop(0)) as outside:
        settings.PROMETHEUS_URL = outside.url
        rollout = make_asking(query_check())
        look(rollout)
        set_phase(rollout, Phase.PAUSED, "look", ANNA, database_now())
        assert only(look(rollout)).verdict == "fail"
    assert rollout.phase == Phase.ROLLING_BACK


@pytest.mark.parametrize("_", [IS_REAL])
def test_prometheus_itself_is_understood_and_its_death_holds(
    settings: Any, tmp_path: Path, _: str
) -> None:
    checks = [
        query_check(query, name=str(n), mode="dry-run") for n, (query, *_) in enumerate(KNOWN)
    ]
    with prometheus(tmp_path) as provider:
        settings.PROMETHEUS_URL = provider.url
        rollout = make_asking(*checks)
        for row, (_query, verdict, why) in zip(look(rollout), KNOWN, strict=True):
            assert (row.verdict, why in row.reason) == (verdict, True), row.reason
        provider.kill()
        rows = look(rollout)
    assert {row.verdict for row in rows} == {"provider-error"}
    assert "cannot be asked: [Errno 111] Connection refused" in rows[0].reason
    assert (rollout.phase, rollout.weight_bp) == (Phase.BAKING, 500)


def test_an_address_where_nobody_answers_is_told(settings: Any) -> None:
    settings.PROMETHEUS_URL = f"http://127.0.0.1:{free_port()}"
    row = only(look(make_asking(query_check())))
    assert row.verdict == "provider-error"
    assert row.reason.startswith(f"Prometheus at {settings.PROMETHEUS_URL} cannot be asked: ")


def test_a_check_that_cannot_be_asked_is_a_provider_error_and_silences_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a fault of ours")

    rollout = make_asking(query_check())
    monkeypatch.setitem(metric_providers.SERVICES, PROMETHEUS, broken)
    Rollout.objects.update(next_check_at=database_now())
    rollout.refresh_from_db()
    asked = ask_services([rollout], database_now())
    assert asked[rollout.pk].answers == {
        PROMETHEUS: {"problem": "the check could not be asked: RuntimeError"}
    }


def test_a_smoke_request_without_an_answer_is_an_error_however_it_ended() -> None:
    rollout = make_asking(CheckDocument(check="smoke"))
    ends = {"answered": 5, "failed": 1, "expired": 2, "shed": 1, "abandoned": 1, "refused": 4}
    number = rollout.target.number
    at = database_now()
    windows = {"variant": "explicit", "at": at}
    send("digits", number, **windows, requests=6, errors=1, assigned_requests=14, ends=ends)
    send("digits", number, **windows, requests=3, errors=1)
    send("digits", number, at=at, requests=90, errors=9)
    seen = observe_database(rollout, [CheckDocument(check="smoke")], at + timedelta(seconds=1))
    assert seen == {"smoke": {"requests": 13, "errors": 6}}
