"""Judges of observations, as tables: observations in, one of the six verdicts out."""

from __future__ import annotations

from typing import Any

import pytest

from apps.rollouts import check_kinds as kinds
from apps.rollouts.analysis import JUDGES
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.external_checks import OBSERVATION_JUDGES
from apps.rollouts.verdicts import CheckResult

AT_MOST = {"query": "up", "at_most": 2}
AT_LEAST = {"query": "up", "at_least": 2}
AGREE = {"agreement_min_bp": 9_900, "rows_min": 500}
QUIET = {"flips": 0, "beyond_tolerance": 0, "errors": 0, "dropped": 0}


def judge(kind: str, settings: dict[str, Any], observation: dict[str, Any]) -> CheckResult:
    check = CheckDocument(check=kind, settings=settings, name="mine")
    return OBSERVATION_JUDGES[kind](check, observation, CheckSettings(alpha=0.01))


def test_every_kind_of_check_has_a_judge() -> None:
    assert set(JUDGES) == set(kinds.KINDS)


@pytest.mark.parametrize(
    ("observation", "verdict"),
    [
        ({}, "no-data"),
        ({"requests": 0, "errors": 0}, "insufficient-sample"),
        ({"requests": 9, "errors": 0}, "insufficient-sample"),
        ({"requests": 10, "errors": 0}, "pass"),
        ({"requests": 10, "errors": 1}, "fail"),
        ({"requests": 1, "errors": 1}, "fail"),
    ],
)
def test_smoke(observation: dict[str, int], verdict: str) -> None:
    assert judge(kinds.SMOKE, {"requests_min": 10}, observation).verdict == verdict


def test_smoke_without_requests_passes_with_a_ready_target() -> None:
    result = judge(kinds.SMOKE, {}, {"requests": 0, "errors": 0})
    assert (result.verdict, result.check) == ("pass", "mine")


@pytest.mark.parametrize(
    ("observation", "verdict"),
    [
        ({}, "no-data"),
        ({"rows": 0, **QUIET}, "no-data"),
        ({"rows": 0, **QUIET, "dropped": 900}, "no-data"),
        ({"rows": 499, **QUIET}, "insufficient-sample"),
        ({"rows": 500, **QUIET}, "pass"),
        ({"rows": 1_000, **QUIET, "flips": 12}, "inconclusive"),
        ({"rows": 1_000, **QUIET, "flips": 60}, "fail"),
        ({"rows": 1_000, **QUIET, "beyond_tolerance": 60}, "fail"),
        ({"rows": 1_000, **QUIET, "errors": 60}, "fail"),
    ],
)
def test_shadow_agreement(observation: dict[str, int], verdict: str) -> None:
    assert judge(kinds.SHADOW_AGREEMENT, AGREE, observation).verdict == verdict


@pytest.mark.parametrize(
    ("settings", "value", "verdict"),
    [
        (AT_MOST, 2, "pass"),
        (AT_MOST, 2.001, "fail"),
        (AT_LEAST, 2, "pass"),
        (AT_LEAST, 1.999, "fail"),
        (AT_MOST, float("nan"), "no-data"),
        (AT_MOST, float("inf"), "no-data"),
        (AT_LEAST, float("inf"), "no-data"),
        (AT_MOST, None, "no-data"),
    ],
)
def test_prometheus(settings: dict[str, Any], value: float | None, verdict: str) -> None:
    result = judge(kinds.PROMETHEUS, settings, {"query": "up", "value": value})
    assert result.verdict == verdict
    assert result.evidence["query"] == "up"


def test_the_reason_of_prometheus_has_the_number_and_the_bound() -> None:
    result = judge(kinds.PROMETHEUS, AT_MOST, {"query": "up{}", "value": 3.5})
    assert result.reason == "3.5 measured, at most 2 allowed: up{}"
    assert result.evidence == {"query": "up{}", "bound": 2.0, "value": 3.5}


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive", "no-data"])
def test_webhook(verdict: str) -> None:
    observation = {"verdict": verdict, "reason": "so it is", "where": "webhook at http://x"}
    result = judge(kinds.WEBHOOK, {"url": "http://x"}, observation)
    assert result.verdict == verdict
    assert result.reason == f"webhook at http://x returned {verdict}: so it is"


@pytest.mark.parametrize("kind", [kinds.PROMETHEUS, kinds.WEBHOOK, kinds.OUTCOME])
def test_a_missing_observation_is_no_data(kind: str) -> None:
    settings = {**AT_MOST, "url": "http://x", "metric": "bought", "margin": 0.1}
    assert judge(kind, settings, {}).verdict == "no-data"
