"""The pairs of a shadow, their labels, and the verdict of a rollout."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings

from apps.experiments import shadow_pairs
from apps.experiments.guardrails import observe_accuracy
from apps.experiments.ingestion import apply_exposures, record_outcomes
from apps.experiments.models import Metric
from apps.experiments.rollout_models import ShadowPairRow
from apps.lib.clock import database_now
from apps.rollouts.check_kinds import SHADOW_ACCURACY, CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.evaluation import repeat_check
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.paired import judge_pairs
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from apps.rollouts.verdicts import Verdict
from contract.messages import Batch, Outcome, ShadowPair
from contract.request_ids import answer_key, request_id_head, request_id_unit
from controlplane.retention.run import run_retention
from tests.rollouts.factories import ANNA, latest, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db

CHECK = CheckDocument(check=SHADOW_ACCURACY, settings={"metric": "label", "margin_bp": 200})
BY_SCORE = CheckDocument(check=SHADOW_ACCURACY, settings={"metric": "label", "scale": 10.0})


@pytest.fixture
def label() -> Metric:
    return Metric.objects.create(name="label", kind=Metric.Kind.MEAN)


@pytest.fixture
def rollout(label: Metric) -> Rollout:
    """Return a rollout with a shadow, at the first of two steps."""
    steps = (
        StepDocument(weight_bp=0, shadow_bp=10_000, checks=(CHECK,)),
        StepDocument(weight_bp=500, checks=("error-rate",)),
    )
    save_plan(document=PlanDocument(name="copy", steps=steps), is_default=True, actor=ANNA)
    make_instance()
    return make_baking(make_model())


def now_ms() -> int:
    return round(database_now().timestamp() * 1_000)


def pair(
    rollout: Rollout, number: int, stable: float, shadow: float, **overrides: Any
) -> ShadowPair:
    at_ms = overrides.pop("at_ms", now_ms())
    fields = {
        "request": answer_key("a1", at_ms * 10**6 + number),
        "at_ms": at_ms,
        "unit": f"u{number}",
        "stable_class": stable,
        "shadow_class": shadow,
    }
    return ShadowPair(shadow=str(rollout.pk), **{**fields, **overrides})


def send_pairs(*pairs: ShadowPair) -> None:
    apply_exposures(
        [Batch(instance="i-1", boot="b", sequence=1, pairs=pairs)],
        database_now() + timedelta(seconds=1),
    )


def outcome(number: int, value: float, **overrides: Any) -> Outcome:
    fields = {"event_id": f"e{number}", "unit_id": f"u{number}", "occurred_at_ms": now_ms()}
    return Outcome(metric="label", value=value, **{**fields, **overrides})


def send_outcomes(*outcomes: Outcome) -> None:
    report = record_outcomes(outcomes, database_now() + timedelta(seconds=1))
    assert not report.refused


def read(rollout: Rollout, check: CheckDocument = CHECK) -> dict[str, Any]:
    return dict(observe_accuracy(rollout, check, database_now()))


def counts(rollout: Rollout, check: CheckDocument = CHECK) -> tuple[int, int, int]:
    observation = read(rollout, check)
    return observation["pairs"], observation["lost"], observation["won"]


def test_the_table_asks_for_pairs_where_the_plan_does(rollout: Rollout) -> None:
    shadow = latest().models["digits"].shadow
    assert shadow is not None
    assert shadow.pairs


def test_a_pair_is_lost_won_or_neither(rollout: Rollout) -> None:
    send_pairs(*(pair(rollout, n, stable, shadow) for n, (stable, shadow) in enumerate(
        [(1, 2), (2, 1), (1, 1), (2, 2), (2, 3)]
    )))  # fmt: skip
    send_outcomes(*(outcome(n, 1.0) for n in range(4)))

    assert counts(rollout) == (4, 1, 1)
    assert read(rollout)["kept"] == 5
    assert read(rollout)["grid"] == [[-100, 1.0], [0, 2.0], [100, 1.0]]


def test_of_a_unit_one_pair_is_kept_and_a_repeated_batch_changes_nothing(rollout: Rollout) -> None:
    first = pair(rollout, 1, 1, 2)
    send_pairs(first)
    send_pairs(first, pair(rollout, 2, 2, 1, unit="u1"), pair(rollout, 3, 1, 1, unit=""))
    send_pairs(pair(rollout, 4, 1, 1, unit=""), first)

    assert sorted(ShadowPairRow.objects.values_list("unit", "shadow_class")) == [
        ("", 1.0), ("", 1.0), ("u1", 2.0),
    ]  # fmt: skip


def request_id(of: ShadowPair, *, unit: str = "") -> str:
    behind = request_id_unit(unit).decode() if unit else ""
    return request_id_head("digits", "1", "").decode()[:-1] + of.request + behind


def test_an_outcome_with_a_request_id_is_the_label_of_that_request_only(
    rollout: Rollout,
) -> None:
    mine, other = pair(rollout, 1, 1, 2), pair(rollout, 9, 1, 2)
    send_pairs(mine)
    # An earlier outcome of the same unit, of another request.
    send_outcomes(outcome(1, 2.0, event_id="other", request_id=request_id(other)))
    assert counts(rollout) == (0, 0, 0)

    send_outcomes(outcome(1, 1.0, event_id="mine", request_id=request_id(mine)))
    assert counts(rollout) == (1, 1, 0)
    # An outcome with the request id has precedence over one with only the unit, at any time.
    send_outcomes(outcome(1, 2.0, event_id="unit"))
    assert counts(rollout) == (1, 1, 0)


@pytest.mark.parametrize("unit", ["", "u1"])
def test_a_request_is_enough_to_find_its_pair(rollout: Rollout, unit: str) -> None:
    mine = pair(rollout, 1, 1, 2, unit=unit)
    # The label may arrive before the pair.
    send_outcomes(outcome(1, 1.0, unit_id="", request_id=request_id(mine)))
    send_pairs(mine)
    assert counts(rollout) == (1, 1, 0)


def test_the_first_outcome_of_a_unit_after_the_answer_is_the_label(rollout: Rollout) -> None:
    at_ms = now_ms()
    skew_ms = settings.OUTCOME_CLOCK_SKEW_S * 1_000
    send_pairs(pair(rollout, 1, 1, 2, at_ms=at_ms))
    send_outcomes(outcome(1, 2.0, event_id="long before", occurred_at_ms=at_ms - skew_ms - 1))
    assert counts(rollout) == (0, 0, 0)
    send_outcomes(outcome(1, 2.0, event_id="second", occurred_at_ms=at_ms + 10))
    assert counts(rollout) == (1, 0, 1)
    send_outcomes(outcome(1, 1.0, event_id="first", occurred_at_ms=at_ms - skew_ms))
    assert counts(rollout) == (1, 1, 0)


def test_a_label_must_be_within_the_metrics_window(rollout: Rollout, label: Metric) -> None:
    at_ms = now_ms() - 20_000
    send_pairs(pair(rollout, 1, 1, 2, at_ms=at_ms))
    Metric.objects.update(window_s=10)
    send_outcomes(outcome(1, 1.0, event_id="late", occurred_at_ms=at_ms + 10_000))
    assert counts(rollout) == (0, 0, 0)
    send_outcomes(outcome(1, 1.0, event_id="in time", occurred_at_ms=at_ms + 9_999))
    assert counts(rollout) == (1, 1, 0)


def test_scores_are_compared_by_their_errors(rollout: Rollout) -> None:
    scores = [(1.0, 6.004), (5.0, 1.0), (1.0, 90.0), (1.0, 1.0)]
    send_pairs(*(
        pair(rollout, n, 0, 0, stable_class=None, shadow_class=None, stable_score=stable,
             shadow_score=shadow)
        for n, (stable, shadow) in enumerate(scores)
    ))  # fmt: skip
    send_outcomes(*(outcome(n, 1.0) for n in range(4)))

    assert counts(rollout, BY_SCORE) == (4, 2, 1)
    grid = dict(read(rollout, BY_SCORE)["grid"])
    # 50.04 steps lie between two places; an error of 90 counts as entirely wrong.
    assert grid == pytest.approx({-40: 1.0, 0: 1.0, 50: 0.96, 51: 0.04, 100: 1.0})
    assert read(rollout)["unreadable"] == 4
    judged = judge_pairs(CHECK, read(rollout), CheckSettings())
    assert judged.verdict is Verdict.NO_DATA
    assert "4 answers have no number" in judged.reason


def test_invalid_pairs_and_those_without_a_rollout_are_left_out(rollout: Rollout) -> None:
    good = pair(rollout, 1, 1, 2)
    send_pairs(
        pair(rollout, 2, 1, 2, unit="u" * 201),
        pair(rollout, 3, 1, 2, unit="a\x00b"),
        pair(rollout, 4, float("nan"), 2),
        pair(rollout, 5, 1, 2, at_ms=-1, request="a1-1"),
        ShadowPair(shadow="sh1", request="a1-2", at_ms=1),
        ShadowPair(shadow="c7bd7ea8-3c2c-4f5e-9a59-d4e3a4e36d3d", request="a1-3", at_ms=1),
        good,
    )
    assert ShadowPairRow.objects.get().unit == good.unit


def test_there_is_a_bound(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_pairs, "PAIRS_MAX", 3)
    send_pairs(*(pair(rollout, n, 1, 2) for n in range(2)))
    send_pairs(*(pair(rollout, n, 1, 2) for n in range(2, 4)))
    send_pairs(pair(rollout, 5, 1, 2))
    assert ShadowPairRow.objects.count() == 4


def test_rows_leave_a_while_after_their_rollout_ended(rollout: Rollout) -> None:
    send_pairs(pair(rollout, 1, 1, 2))
    Rollout.objects.update(ended_at=database_now())
    kept = timedelta(days=settings.RETENTION_DAYS["shadow_pairs"])
    run_retention(database_now() + kept - timedelta(minutes=1))
    assert ShadowPairRow.objects.exists()
    run_retention(database_now() + kept + timedelta(minutes=1))
    assert not ShadowPairRow.objects.exists()


@pytest.mark.parametrize(
    ("shadow_wrong", "phase"),
    [(60, Phase.ROLLING_BACK), (4, Phase.BAKING)],
)
def test_a_shadow_that_is_less_accurate_never_gets_traffic(
    rollout: Rollout, shadow_wrong: int, phase: Phase
) -> None:
    """Of 400 requests stable is wrong in 4, the shadow in 4 or in 64."""
    wrong = set(range(4))
    send_pairs(*(
        pair(rollout, n, 0 if n in wrong else 1, 0 if n in wrong or n < shadow_wrong else 1)
        for n in range(400)
    ))  # fmt: skip
    send_outcomes(*(outcome(n, 1.0) for n in range(400)))
    # The clock of the step starts once the table is applied.
    tick_rollouts()
    Rollout.objects.update(next_check_at=database_now(), step_due_at=database_now())

    tick_rollouts()

    rollout.refresh_from_db()
    assert rollout.phase == phase, rollout.reason
    assert rollout.step_index == (0 if phase == Phase.ROLLING_BACK else 1)
    kept = Evaluation.objects.get(check_name=SHADOW_ACCURACY)
    again = repeat_check(kept)
    assert (again.verdict, again.reason) == (kept.verdict, kept.reason)
    assert "after 400 requests that both answered" in kept.reason
