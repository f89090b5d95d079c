"""A reason has a headline without statistics, and a detail with them; both are kept and shown."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.rollouts.check_kinds import ERROR_RATE, CheckDocument
from apps.rollouts.checks import CheckSettings, judge_error_rate
from apps.rollouts.decisions import Action, JudgedCheck, StepClock, StepFacts, decide_step
from apps.rollouts.eprocess import BucketCounts
from apps.rollouts.models import Rollout, RolloutEvent
from apps.rollouts.phases import roll_back
from apps.rollouts.reasons import HEADLINE_MAX, Reason, detail_of, headline_of
from apps.rollouts.verdicts import CheckResult, Verdict
from tests.rollouts.factories import ANNA, make_baking, make_model

NOW = datetime(2026, 11, 30, tzinfo=UTC)


@given(st.text(max_size=400))
def test_a_headline_is_one_short_line(text):
    headline = headline_of(text)
    assert len(headline) <= HEADLINE_MAX
    assert "\n" not in headline


def test_a_headline_is_the_first_clause_cut_between_words():
    assert headline_of("paused manually; because of a page.") == "Paused manually"
    assert headline_of("held: instance i-2 is silent") == "Held: instance i-2 is silent"
    assert headline_of("digits:2 is stable") == "digits:2 is stable"
    long = headline_of(f"{'word ' * 30}end")
    assert long.endswith("word…")


def test_a_detail_that_says_no_more_is_not_shown():
    assert detail_of("Paused manually", "paused manually.") == ""
    assert detail_of("Rolled back", "error-rate: 9 % (odds 12:1)") == "error-rate: 9 % (odds 12:1)"


def test_the_headline_of_a_failed_check_has_its_figures_and_no_odds():
    result = CheckResult(
        ERROR_RATE, Verdict.FAIL, "22.70 % …, margin 1 %: proven worse (odds 10^6:1)", {},
        headline="22.70 % errors against 0.00 % on stable, after 22 requests",
    )  # fmt: skip
    facts = StepFacts(StepClock(NOW, NOW), NOW, 22, 0)
    decision = decide_step([JudgedCheck(CheckDocument(check=ERROR_RATE), result)], facts)
    assert decision.action is Action.ROLL_BACK
    assert decision.why.headline == (
        "Rolled back: 22.70 % errors against 0.00 % on stable, after 22 requests"
    )
    assert "odds" in decision.why.detail


def test_checks_of_traffic_give_figures():
    counts = [BucketCounts(200, 60, 2_000, 20) for _ in range(12)]
    result = judge_error_rate(counts, CheckSettings())
    assert result.headline == "30.0 % errors against 1.0 % on stable, after 2,400 requests"


@pytest.mark.django_db
def test_both_are_kept_of_the_rollout_and_of_its_event():
    rollout = make_baking(make_model())
    roll_back(rollout, Reason("Rolled back: 9 % errors", "error-rate: 9 % (odds 12:1)"), ANNA, NOW)
    rollout = Rollout.objects.get(pk=rollout.pk)
    event = RolloutEvent.objects.filter(rollout=rollout).latest("pk")
    for row in (rollout, event):
        assert (row.headline, row.reason) == (
            "Rolled back: 9 % errors",
            "error-rate: 9 % (odds 12:1)",
        )
