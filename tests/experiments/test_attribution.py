"""Attribution of outcomes in results, and notices if many outcomes do not count."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.experiments import attribution as module
from apps.experiments.attribution import compute_attribution
from apps.experiments.models import Experiment, Metric
from apps.experiments.postgres import Postgres
from apps.experiments.result_tables.attribution import attribution_notices, attribution_table
from apps.experiments.services import MetricChoice
from tests.experiments.factories import NOW, expose, make_metric, make_running, observe

pytestmark = pytest.mark.django_db


def counts(experiment: Experiment, now: Any = NOW, *, is_final: bool = False) -> dict[str, Any]:
    return compute_attribution(experiment, now, Postgres(), is_final=is_final)


def noticed(**fields: int | None) -> list[tuple[str, str]]:
    known = {"in_time": 0, "before": 0, "before_mean_s": None, "after_window": 0}
    row = known | {"unknown_units": 0} | fields
    stored = {"skew_s": 5, "since": "", "metrics": {"m": row}}
    return list(attribution_notices({"attribution": stored}))


def test_each_outcome_is_in_one_count() -> None:
    metric = Metric.objects.create(name="m", kind="mean", window_s=60)
    experiment = make_running(metrics=[MetricChoice(metric)])
    expose(experiment, "u", "weak", 100)
    for after_s in (-90_000, 80, 94, 95, 100, 159, 160, 900):
        observe(metric, "u", 1.0, after_s)
    observe(metric, "nobody", 1.0, 100)

    metric_counts = counts(experiment)["metrics"]["m"]

    # The outcome from more than a day before the start is not counted.
    assert metric_counts == {
        "in_time": 3, "before": 2, "before_mean_s": 13, "after_window": 2, "unknown_units": 1,
    }  # fmt: skip


def test_a_ratio_counts_the_outcomes_of_both_of_its_metrics() -> None:
    below = make_metric("sessions", "mean")
    ratio = Metric.objects.create(name="r", kind="ratio", divided_by=below)
    experiment = make_running(metrics=[MetricChoice(ratio)])
    expose(experiment, "u", "weak")
    observe(ratio, "u", 1.0)
    observe(below, "u", 1.0)

    assert counts(experiment)["metrics"]["r"]["in_time"] == 2


def test_a_costly_count_is_reused_and_repeated_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = make_running()
    clock = iter([0.0, 2.0, 0.0, 2.0, 0.0, 2.0])
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    first = counts(experiment)
    experiment.result = {"attribution": first}
    soon, later = NOW + timedelta(seconds=39), NOW + timedelta(seconds=41)

    assert counts(experiment, soon) == first
    assert counts(experiment, later)["counted_at"] == later.isoformat()
    assert counts(experiment, soon, is_final=True)["counted_at"] == soon.isoformat()


@pytest.mark.parametrize(
    ("fields", "tone", "words"),
    [
        ({"before": 9, "before_mean_s": 60}, "bad", "Check the sender's clock"),
        ({"in_time": 91, "before": 9, "before_mean_s": 60}, "warn", "9 of 100 outcomes"),
        ({"in_time": 91, "before": 9, "before_mean_s": 90_000}, "busy", "by 90,000 s on average"),
        ({"in_time": 50, "after_window": 50}, "busy", "50 of 100 outcomes"),
        ({"in_time": 50, "unknown_units": 50}, "busy", "50 of 100 outcomes are of units"),
        ({"unknown_units": 50}, "warn", "all 50 outcomes are of units without exposure"),
    ],
)
def test_a_large_share_has_a_notice(fields: dict[str, int], tone: str, words: str) -> None:
    ((actual_tone, text),) = noticed(**fields)

    assert actual_tone == tone
    assert words in text


def test_a_small_share_has_no_notice() -> None:
    assert noticed(in_time=99, before=1, before_mean_s=60, unknown_units=1) == []
    assert noticed() == []
    assert attribution_table({"metrics": []}) is None
