"""Judges what observers brought. Pure: an observation in, a result out, the same whenever repeated.

No data is an answer of its own, never a pass and never a failure. Outcomes are judged by the app
that keeps them, which registers its judge here when it is ready.
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

# What an observer brought; JSON, as the decision log keeps it.
Observed = Mapping[str, Any]
JudgeObserved = Callable[[CheckDocument, Observed, CheckSettings], CheckResult]


def judge_smoke(check: CheckDocument, seen: Observed, _: CheckSettings) -> CheckResult:
    """The target is ready, or its step would not have begun; what named it must not have failed."""
    if "requests" not in seen:
        return _no_data(check, "requests by explicit version were not counted")
    requests, errors = int(seen["requests"]), int(seen["errors"])
    needed = int(check.setting("requests_min"))
    told = f"{errors} of {requests} requests by explicit version had no answer"
    record: dict[str, JSON] = {"n": requests, "errors": errors, "requests_min": needed}
    if errors:
        return CheckResult(check.label, Verdict.FAIL, told, record)
    if requests < needed:
        told = f"{told}; {needed} are needed"
        return CheckResult(check.label, Verdict.INSUFFICIENT_SAMPLE, told, record)
    return CheckResult(check.label, Verdict.PASS, f"the target is ready; {told}", record)


def judge_agreement(check: CheckDocument, seen: Observed, settings: CheckSettings) -> CheckResult:
    """Rows are the answers that agree or differ: a copy may hold many of them."""
    counts = {name: int(seen.get(name, 0)) for name in COUNTED}
    found = judge_shadow_agreement(
        compared=counts.pop("rows"),
        copies=int(seen.get("compared", 0)),
        **counts,
        agreement_min_bp=int(check.setting("agreement_min_bp")),
        compared_min=int(check.setting("rows_min")),
        settings=settings,
        steps=int(seen.get("steps", 1)),
    )
    return replace(found, check=check.label)


# What a shadow's windows count, of all that is brought.
COUNTED = ("rows", "flips", "beyond_tolerance", "errors", "dropped")


def judge_prometheus(check: CheckDocument, seen: Observed, _: CheckSettings) -> CheckResult:
    """The one number of the query's answer against the bound."""
    if "query" not in seen:
        return _no_data(check, "Prometheus was not asked")
    bound, is_within, words = _bound_of(check)
    record: dict[str, JSON] = {"query": str(seen["query"]), "bound": bound}
    value = _number(seen.get("value"))
    if value is None:
        told = f"Prometheus has no number for {seen['query']}: {seen.get('nothing', 'no answer')}"
        return CheckResult(check.label, Verdict.NO_DATA, told, record)
    record["value"] = value
    verdict = Verdict.PASS if is_within(value) else Verdict.FAIL
    told = f"{seen['query']} is {value:g}, {words} {bound:g}"
    return CheckResult(check.label, verdict, told, record)


def _bound_of(check: CheckDocument) -> tuple[float, Callable[[float], bool], str]:
    """Return the bound, what is within it, and how it is told."""
    if "at_most" in check.settings:
        most = float(check.settings["at_most"])
        return most, lambda value: value <= most, "at most"
    least = float(check.settings["at_least"])
    return least, lambda value: value >= least, "at least"


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


# What a service of the user's may answer; that it failed itself is not for it to say.
ANSWERS = {
    str(verdict): verdict
    for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NO_DATA)
}


def judge_webhook(check: CheckDocument, seen: Observed, _: CheckSettings) -> CheckResult:
    """The service's own verdict, in its own words."""
    verdict = ANSWERS.get(str(seen.get("verdict")))
    if verdict is None:
        return _no_data(check, "the webhook was not asked")
    where = str(seen.get("where", "the webhook"))
    said = str(seen.get("reason") or "no reason given")
    told = f"{where} says {verdict}: {said}"
    return CheckResult(check.label, verdict, told, {"where": where, "said": said})


def _judge_outcome(check: CheckDocument, _: Observed, __: CheckSettings) -> CheckResult:
    return CheckResult(check.label, Verdict.PROVIDER_ERROR, "no app keeps outcomes here", {})


def _no_data(check: CheckDocument, why: str) -> CheckResult:
    return CheckResult(check.label, Verdict.NO_DATA, why, {})


OBSERVED: dict[str, JudgeObserved] = {
    kinds.SMOKE: judge_smoke,
    kinds.SHADOW_AGREEMENT: judge_agreement,
    kinds.SHADOW_ACCURACY: judge_pairs,
    kinds.PROMETHEUS: judge_prometheus,
    kinds.WEBHOOK: judge_webhook,
    kinds.OUTCOME: _judge_outcome,
}
