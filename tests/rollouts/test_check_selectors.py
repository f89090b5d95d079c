"""What a rollout's checks show: each kind's own figures beside stable's, or beside the bound."""

from __future__ import annotations

from typing import Any

import pytest

from apps.rollouts.check_kinds import KINDS, CheckDocument
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.selectors.checks import Cell, checks_of, sides_of
from tests.rollouts.factories import ANNA, judge, make_baking, make_model

RATES = {"canary_rate": 0.031, "canary_events": 57, "canary_n": 1_842}
RATES |= {"control_rate": 0.009, "control_events": 9, "control_n": 1_000}
MEANS = {"canary_mean": 0.5, "canary_n": 70, "control_mean": 0.6, "control_n": 80, "margin": 0.02}


@pytest.mark.parametrize(
    ("kind", "settings", "evidence", "observed", "compared"),
    [
        ("error-rate", {}, RATES, ("3.10 %", "57 of 1,842"), ("0.90 %", "9 of 1,000")),
        ("error-threshold", {}, RATES, ("3.10 %", "57 of 1,842"), ("0.90 %", "9 of 1,000")),
        (
            "error-rate",
            {},
            {"absolute": True, "n": 1_200},
            ("n=1,200", ""),
            ("fixed bound", "no traffic on stable"),
        ),
        (
            "latency",
            {},
            {"absolute": True, "n": 1_200, "errors": 3, "deciders": []},
            ("n=1,200", ""),
            ("–", "no traffic on stable"),
        ),
        ("error-rate", {}, {"canary_n": 0, "control_n": 12}, ("n=0", ""), ("n=12", "")),
        (
            "latency",
            {},
            {"p95": RATES},
            ("3.10 %", "of 1,842 above the reference p95"),
            ("0.90 %", "of 1,000 above the reference p95"),
        ),
        ("latency", {}, {"reference_requests": 7}, ("–", ""), ("n=7", "for the reference latency")),
        (
            "sample-ratio",
            {},
            {"observed": 41, "expected": 50.0, "n": 1_000},
            ("41", "of 1,000 units"),
            ("50", "expected, 5.00 %"),
        ),
        ("sample-ratio", {}, {"leaked": 3, "n": 90}, ("3", "of 90"), ("0", "expected")),
        (
            "smoke",
            {},
            {"errors": 1, "n": 20, "requests_min": 10},
            ("1 failed", "of 20 by version number"),
            ("0 failed", "of at least 10"),
        ),
        ("error-objective", {"limit_bp": 150}, {"n": 9}, ("n=9", ""), ("1.5 %", "errors, maximum")),
        (
            "latency-objective",
            {"limit_us": 20_000},
            {"quantile_us": 12_000, "n": 9},
            ("12.0 ms", "p95, n=9"),
            ("20.0 ms", "p95, maximum"),
        ),
        (
            "shadow-agreement",
            {},
            {"compared": 90, "flips": 3, "beyond_tolerance": 5, "errors": 10},
            ("85.0 %", "agreement, 100 rows"),
            ("99 %", "agreement, minimum"),
        ),
        (
            "outcome",
            {"metric": "bought", "margin": 0.02},
            MEANS | {"low": -0.3, "high": 0.1},
            ("0.5", "n=70, better by -0.3 to 0.1"),
            ("0.6", "n=80, margin 0.02"),
        ),
        (
            "prometheus",
            {"query": "up", "at_most": 3},
            {"value": 2.5, "bound": 3.0},
            ("2.5", ""),
            ("3", "maximum"),
        ),
        (
            "shadow-accuracy",
            {"metric": "label"},
            {"n": 400, "difference": 0.025, "margin": 0.01},
            ("2.50 %", "less accurate, of 400 pairs"),
            ("1.00 %", "less accurate, maximum"),
        ),
        (
            "shadow-accuracy",
            {"metric": "label"},
            {"n": 0, "kept": 1_200},
            ("1,200 pairs", "no labels yet"),
            ("–", ""),
        ),
        ("webhook", {"url": "https://x.example/"}, {"said": "fine"}, ("–", "“fine”"), ("–", "")),
    ],
)
def test_each_kind_shows_its_own_figures(
    kind: str,
    settings: dict[str, Any],
    evidence: dict[str, Any],
    observed: tuple[str, str],
    compared: tuple[str, str],
) -> None:
    check = CheckDocument(check=kind, settings=settings)

    assert sides_of(check, evidence) == (Cell(*observed), Cell(*compared))


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_that_holds_nothing_known_shows_nothing_and_breaks_nothing(kind: str) -> None:
    settings = {"limit_bp": 1, "limit_us": 1} if kind.endswith("objective") else {}
    sides = sides_of(CheckDocument(check=kind, settings=settings), {"odd": None})

    assert all(isinstance(side, Cell) for side in sides)


@pytest.mark.django_db
def test_the_present_steps_checks_stand_first_those_that_are_not_answered_too() -> None:
    named = CheckDocument(check="latency", name="zippy", mode="dry-run")
    steps = (StepDocument(weight_bp=500, checks=("error-rate", named)),)
    save_plan(document=PlanDocument(name="mine", steps=steps), is_default=True, actor=ANNA)
    rollout = make_baking(make_model())
    judge(rollout, "zippy", "pass", "as quick")
    judge(rollout, "bygone", "fail", "from an older plan")

    first, second, third = checks_of(rollout)

    assert (first.name, first.verdict, first.mode) == ("error-rate", "", "guardrail")
    assert (second.name, second.kind, second.mode) == ("zippy", "latency", "dry-run")
    assert (third.name, third.verdict, third.kind) == ("bygone", "fail", "")


@pytest.mark.django_db
def test_percentiles_are_shown_with_their_difference_and_bounds() -> None:
    rollout = make_baking(make_model())
    known = {"canary_us": 9_000.0, "control_us": 8_000.0, "difference_us": 1_000.0}
    rows = [
        {"permille": 500, **known, "low_us": -200.0, "high_us": 2_000.0},
        {"permille": 990, **dict.fromkeys(known), "low_us": None, "high_us": None},
    ]
    judge(rollout, "latency", "pass", "as quick", percentiles=rows)

    views = next(view for view in checks_of(rollout) if view.name == "latency").percentiles

    assert [row.name for row in views] == ["p50", "p99"]
    assert (views[0].difference, views[0].bounds) == ("+1.00 ms", "−0.20 ms to +2.00 ms")
    assert (views[1].canary, views[1].difference, views[1].bounds) == ("–", "unknown", "–")
