"""Describes what a holding step still needs: the number of answers, and how long they take.

The rate of answers is that of the step so far. The proof per answer is an expectation for a version
that is as good as stable (`apps.rollouts.estimates.growth`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from apps.rollouts import check_kinds as kinds
from apps.rollouts.decisions import LACKING, JudgedCheck
from apps.rollouts.durations import format_duration
from apps.rollouts.estimates import ERROR_RATE_LEAST, growth
from apps.rollouts.evidence import Interval
from apps.rollouts.latency_baseline import ANSWERS_FEWEST
from apps.rollouts.plans import WHOLE_BP
from apps.rollouts.sample_ratio import EXPECTED_MIN


def describe_missing(
    judged: Sequence[JudgedCheck],
    step_intervals: Sequence[Interval],
    *,
    now: datetime,
    samples_min: int,
    requests: tuple[int, int],
) -> dict[str, str]:
    """Describe what each check lacks, by label, and under "requests" what the step lacks.

    `step_intervals` are those of the current step. `requests` are the canary's answered and
    required requests in it.
    """
    canary = _rate([(i.started_at, i.canary.n) for i in step_intervals], now)
    control = _rate([(i.started_at, i.control.n) for i in step_intervals], now)
    missing = {}
    if requests[0] < requests[1]:
        answered = _rate([(i.started_at, i.canary.requests) for i in step_intervals], now)
        missing["requests"] = _time((requests[1] - requests[0]), answered)
    for each in judged:
        if each.result.verdict in LACKING:
            evidence = each.result.evidence
            missing[each.check.label] = _missing(
                each.check.check, evidence, samples_min, canary, control
            )
    return {name: text for name, text in missing.items() if text}


def _missing(
    check: str, evidence: Mapping[str, Any], samples_min: int, canary: float, control: float
) -> str:
    if check == kinds.SAMPLE_RATIO:
        return _missing_units(evidence, canary + control)
    if "reference_requests" in evidence:
        have = int(evidence["reference_requests"])
        if have >= ANSWERS_FEWEST:
            return ""
        return _count(have, ANSWERS_FEWEST, "answers from stable", control)
    known: list[Mapping[str, Any]] = [evidence, *_of_quantiles(evidence)]
    records = [record for record in known if _is_record(record)]
    if not records:
        return ""
    have = int(records[0]["canary_n"])
    more = max(_answers_missing(record) for record in records)
    return _count(have, have + max(more, samples_min - have), "answers from the canary", canary)


def _of_quantiles(evidence: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return each quantile's counts together with the shared proof of safety."""
    return [{**evidence, **evidence[name]} for name in ("p50", "p95", "p99") if name in evidence]


def _is_record(record: Mapping[str, Any]) -> bool:
    """Return whether the record is of one comparison of rates with data of both arms."""
    needed = {"log_e_mirror", "log_e_promote", "canary_n", "control_n", "margin_bp"}
    return needed <= set(record) and record["canary_n"] > 0 and record["control_n"] > 0


def _answers_missing(record: Mapping[str, Any]) -> int:
    """Return the number of canary answers for the missing proof of safety of one process."""
    lacking = max(0.0, record["log_e_promote"] - record["log_e_mirror"])
    n = record["canary_n"] + record["control_n"]
    share = record["canary_n"] / n
    rate = max(record["control_rate"] or 0.0, ERROR_RATE_LEAST)
    gained = growth(share, rate, record["margin_bp"] / WHOLE_BP)
    answers: float = lacking / gained * share
    return math.ceil(answers)


def _missing_units(evidence: Mapping[str, Any], per_second: float) -> str:
    if not evidence.get("expected"):
        return ""
    share = evidence["expected"] / evidence["n"]
    needed = EXPECTED_MIN * evidence.get("spread", 1.0) / min(share, 1.0 - share)
    return _count(evidence["n"], round(needed), "units on both versions", per_second)


def _count(have: int, needed: int, noun: str, per_second: float) -> str:
    if needed <= have:
        return ""
    return f"{have:,} of about {needed:,} {noun}; {_time(needed - have, per_second)}"


def _rate(counts: Sequence[tuple[datetime, int]], now: datetime) -> float:
    if not counts:
        return 0.0
    return sum(n for _, n in counts) / max(1.0, (now - counts[0][0]).total_seconds())


def _time(count: float, per_second: float) -> str:
    if per_second <= 0.0:
        return "none in this step yet"
    return f"about {format_duration(count / per_second)} at the rate of this step so far"
