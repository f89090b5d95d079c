"""Outcomes of unknown metrics: refused item by item, and shown to operators."""

from __future__ import annotations

import json
from collections import Counter

from contract.messages import STREAM_OUTCOMES
from contract.refusals import (
    MALFORMED,
    NO_PROPORTION,
    OTHER_METRICS,
    TOO_OLD,
    UNKNOWN_METRIC,
    MetricRule,
    nearest,
)
from dataplane.outcome_refusals import KEYS_MAX, NAMED_MAX, Refusals, without_refused
from dataplane.outcomes import read_outcomes
from tests.dataplane.control import an_instance, applied
from tests.dataplane.groups import TOKEN
from tests.dataplane.test_instance import entries
from tests.dataplane.worlds import until

RULES = {
    "converted": MetricRule(is_binary=True),
    "latency": MetricRule(
        refusal="the data plane measures latency itself; outcomes are not accepted"
    ),
    "revenue": MetricRule(),
}
LEAP = "2016-12-31T23:59:60Z"
NEW_YEAR_MS = 1_483_228_800_000


def read(*items):
    outcomes = read_outcomes(json.dumps(list(items)).encode(), NEW_YEAR_MS, lambda: "made")
    return without_refused(outcomes, RULES)


def item(metric="revenue", value=1.0, **fields):
    return {"unit_id": "u", "metric": metric, "value": value, **fields}


def test_each_outcome_is_checked_separately_and_keeps_its_index():
    outcomes = read(
        item("convertd", event_id="e0"),
        item(),
        item(occurred_at=LEAP),
        item("converted", 0.5),
        item("converted", 1),
        item("latency", 3.0),
    )
    assert [each.metric for each in outcomes] == ["revenue", "converted"]
    reasons = [(each["index"], each["metric"], each["reason"]) for each in outcomes.refused]
    assert reasons == [
        (0, "convertd", UNKNOWN_METRIC),
        (2, "revenue", "occurred_at is a leap second"),
        (3, "converted", NO_PROPORTION),
        (5, "latency", RULES["latency"].refusal),
    ]
    assert outcomes.refused[0]["event_id"] == "e0"


def test_the_error_names_the_metric_and_the_known_metrics():
    (entry,) = read(item("convertd"), item()).refused
    assert entry["error"] == (
        "metric 'convertd': unknown metric; known metrics are converted, revenue; a new metric is "
        "known within seconds"
    )


def test_of_many_metrics_the_nearest_names_are_shown():
    names = [f"metric-{n:04}" for n in range(1_000)]
    shown = nearest("metric-0500x", names, NAMED_MAX)
    assert len(shown) == NAMED_MAX
    assert {"metric-0500", "metric-0501"} <= set(shown)
    assert nearest("zzz", names, 2) == ["metric-0998", "metric-0999"]
    assert nearest("a", [], 2) == []


def test_counts_are_limited_whatever_names_are_sent():
    refusals = Refusals()
    strange = [{"metric": f"m{n}", "reason": UNKNOWN_METRIC} for n in range(3 * KEYS_MAX)]
    refusals.count(strange, "shop", RULES)
    sent = refusals.drain()
    assert len(sent) == KEYS_MAX + 1
    assert sum(each.count for each in sent) == 3 * KEYS_MAX
    assert sent[-1].metric == OTHER_METRICS
    assert refusals.totals == {("", UNKNOWN_METRIC, "shop"): 3 * KEYS_MAX}
    assert refusals.drain() == ()


async def send(valkey, folder, *bodies, metrics=RULES):
    """Return the responses to `bodies`, the metrics page, and the messages to the control plane."""
    async with an_instance(valkey, folder, metrics=metrics) as (instance, client, _, _):
        await applied(instance)
        await until(lambda: instance.sync.is_confirmed(5.0))
        answers = [await client.post("/outcomes", json=each) for each in bodies]
        page = (await client.get("/metrics", headers=TOKEN)).text
    sent = [each for b in await entries(valkey, STREAM_OUTCOMES) for each in b.refusals]
    counts = Counter()
    for each in sent:
        counts[each.metric[:10], each.reason] += each.count
    return answers, page, counts


async def test_a_client_gets_the_refusals(valkey, tmp_path):
    bodies = [[item(), item("convertd"), item("x" * 90)], item("convertd"), [item(value="1")]]
    (some, alone, wrong), _, _ = await send(valkey, tmp_path, *bodies)
    assert (some.status_code, some.json()["accepted"]) == (202, 1)
    assert [each["index"] for each in some.json()["refused"]] == [1, 2]
    assert (alone.status_code, wrong.status_code) == (400, 400)
    assert alone.json()["errors"][0]["reason"] == UNKNOWN_METRIC


async def test_the_operator_sees_the_refusals(valkey, tmp_path):
    old = item(occurred_at="1999-01-01T00:00:00Z")
    bodies = [[item(), item("convertd"), item("x" * 90)], item("convertd"), [item(value="1")], old]
    _, page, counts = await send(valkey, tmp_path, *bodies)
    unknown = 'interlock_outcomes_refused_total{metric="",reason="unknown metric",tenant=""} 3'
    assert unknown in page
    assert counts == {
        ("convertd", UNKNOWN_METRIC): 2,
        ("x" * 10, UNKNOWN_METRIC): 1,
        ("revenue", MALFORMED): 1,
        ("revenue", TOO_OLD): 1,
    }


async def test_large_lists_are_checked_as_small_ones(valkey, tmp_path):
    many = [item(event_id="e" * 150) for _ in range(990)] + [item("convertd")] * 10
    (answer,), _, counts = await send(valkey, tmp_path, many)
    assert (answer.status_code, answer.json()["accepted"]) == (202, 990)
    assert [each["index"] for each in answer.json()["refused"]] == list(range(990, 1_000))
    assert counts == {("convertd", UNKNOWN_METRIC): 10}


async def test_a_table_without_metrics_refuses_no_outcome(valkey, tmp_path):
    (answer,), _, _ = await send(valkey, tmp_path, item("convertd"), metrics=None)
    assert answer.json() == {"accepted": 1}


async def test_a_table_that_was_not_confirmed_recently_refuses_no_outcome(valkey, tmp_path):
    """The metric may have been defined since: the control plane decides."""
    async with an_instance(valkey, tmp_path, metrics=RULES) as (instance, client, _, _):
        await applied(instance)
        instance.sync.is_confirmed = lambda within_s: False
        answer = await client.post("/outcomes", json=item("convertd"))
    assert answer.json() == {"accepted": 1}
