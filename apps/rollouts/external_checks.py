"""Judges observations that do not come from traffic. Pure: the same input gives the same result.

Missing data leads to its own verdict, never to a pass or a failure. The app that keeps outcomes
registers its judge here in `ready`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from apps.rollouts import check_kinds as kinds
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.objectives import judge_shadow_agreement
from apps.rollouts.paired import judge_pairs
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

# An observation as JSON, as the decision log keeps it.
Observation = Mapping[str, Any]
JudgeObservation = Callable[[CheckDocument, Observation, CheckSettings], CheckResult]


def judge_smoke(check: CheckDocument, observation: Observation, _: CheckSettings) -> CheckResult:
    """Fail if a request that named the version failed. A step begins only with a ready target."""
    if "requests" not in observation:
        return _no_data(check, "requests that name the version were not counted")
    requests, errors = int(observation["requests"]), int(observation["errors"])
    needed = int(check.setting("requests_min"))
    counts = f"{errors} of {requests} requests that named the version got no answer"
    record: dict[str, JSON] = {"n": requests, "errors": errors, "requests_min": needed}
    if errors:
        return CheckResult(check.label, Verdict.FAIL, counts, record)
    if requests < needed:
        reason = f"{counts}; at least {needed} requests are needed"
        return CheckResult(check.label, Verdict.INSUFFICIENT_SAMPLE, reason, record)
    return CheckResult(check.label, Verdict.PASS, f"the target is ready; {counts}", record)


def judge_agreement(
    check: CheckDocument, observation: Observation, settings: CheckSettings
) -> CheckResult:
    """Judge rows of answers, which agree or differ; a copied request may have many."""
    counts = {name: int(observation.get(name, 0)) for name in COUNTED}
    result = judge_shadow_agreement(
        compared=counts.pop("rows"),
        copies=int(observation.get("compared", 0)),
        **counts,
        agreement_min_bp=int(check.setting("agreement_min_bp")),
        compared_min=int(check.setting("rows_min")),
        settings=settings,
        steps=int(observation.get("steps", 1)),
    )
    return replace(result, check=check.label)


# The counts of a shadow's windows within an observation.
COUNTED = ("rows", "flips", "beyond_tolerance", "errors", "dropped")


def judge_prometheus(
    check: CheckDocument, observation: Observation, _: CheckSettings
) -> CheckResult:
    """Compare the one number that the query returned with the bound."""
    if "query" not in observation:
        return _no_data(check, "Prometheus was not queried")
    bound, is_within, direction = _bound_of(check)
    record: dict[str, JSON] = {"query": str(observation["query"]), "bound": bound}
    value = _number(observation.get("value"))
    if value is None:
        problem = observation.get("nothing", "no answer")
        reason = f"Prometheus returned no number for {observation['query']}: {problem}"
        return CheckResult(check.label, Verdict.NO_DATA, reason, record)
    record["value"] = value
    verdict = Verdict.PASS if is_within(value) else Verdict.FAIL
    reason = f"{value:g} measured, {direction} {bound:g} allowed: {observation['query']}"
    return CheckResult(check.label, verdict, reason, record)


def _bound_of(check: CheckDocument) -> tuple[float, Callable[[float], bool], str]:
    """Return the bound, a test for values within it, and its name."""
    if "at_most" in check.settings:
        most = float(check.settings["at_most"])
        return most, lambda value: value <= most, "at most"
    least = float(check.settings["at_least"])
    return least, lambda value: value >= least, "at least"


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


# The verdicts that a webhook may return; provider-error is not among them.
ANSWERS = {
    str(verdict): verdict
    for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NO_DATA)
}


def judge_webhook(check: CheckDocument, observation: Observation, _: CheckSettings) -> CheckResult:
    """Take over the verdict and the reason of the service."""
    verdict = ANSWERS.get(str(observation.get("verdict")))
    if verdict is None:
        return _no_data(check, "the webhook was not called")
    where = str(observation.get("where", "the webhook"))
    explanation = str(observation.get("reason") or "no reason given")
    reason = f"{where} returned {verdict}: {explanation}"
    return CheckResult(check.label, verdict, reason, {"where": where, "said": explanation})


def _judge_outcome(check: CheckDocument, _: Observation, __: CheckSettings) -> CheckResult:
    return CheckResult(
        check.label, Verdict.PROVIDER_ERROR, "no installed app provides outcomes", {}
    )


def _no_data(check: CheckDocument, reason: str) -> CheckResult:
    return CheckResult(check.label, Verdict.NO_DATA, reason, {})


OBSERVATION_JUDGES: dict[str, JudgeObservation] = {
    kinds.SMOKE: judge_smoke,
    kinds.SHADOW_AGREEMENT: judge_agreement,
    kinds.SHADOW_ACCURACY: judge_pairs,
    kinds.PROMETHEUS: judge_prometheus,
    kinds.WEBHOOK: judge_webhook,
    kinds.OUTCOME: _judge_outcome,
}
