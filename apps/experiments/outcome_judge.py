"""Judges a rollout's outcomes as an experiment judges a guardrail. Pure.

The estimate, what keeps it silent and the judgement of the margin are those of `stats`. A rollout's
steps are phases there: shares differ between steps, so that units are compared inside each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import msgspec

from apps.experiments.stats import estimates
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import State
from apps.experiments.stats.data import ArmData, MetricData, MetricSpec, OrderStatistics, Stratum
from apps.experiments.stats.estimates import Estimate
from apps.experiments.stats.margins import MarginVerdict, judge_margin
from apps.experiments.stats.sequential import PLANNED_UNITS_DEFAULT
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.external_checks import Observed
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

CANARY, CONTROL = "canary", "control"
# More units than this are never said to be missing.
MISSING_MAX = 1e9


# --- what the decision log keeps ------------------------------------------------------------------


def to_json(metric: MetricData) -> dict[str, JSON]:
    """Return a metric's sufficient statistics, without charts and breakdowns."""
    return {
        "spec": msgspec.to_builtins(metric.spec),
        "arms": {
            name: {
                "whole": msgspec.to_builtins(arm.comoments),
                "order": msgspec.to_builtins(arm.order),
                "strata": [
                    {**stratum._asdict(), "units": msgspec.to_builtins(units)}
                    for stratum, units in arm.strata.items()
                ],
            }
            for name, arm in metric.arms.items()
        },
    }


def from_json(stored: Mapping[str, Any]) -> MetricData:
    """Return what `to_json` was given. Raises msgspec.ValidationError for anything else."""
    arms = {
        name: ArmData(
            msgspec.convert(arm["whole"], Comoments),
            order=msgspec.convert(arm["order"], OrderStatistics | None),
            strata={
                Stratum(each["phase"], each["level"]): msgspec.convert(each["units"], Comoments)
                for each in arm["strata"]
            },
        )
        for name, arm in stored["arms"].items()
    }
    return MetricData(msgspec.convert(stored["spec"], MetricSpec), arms)


# --- judging --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What the canary's comparison with control came to, at the levels of a pass and of a fail.

    `gain` is how much better the canary is, in the metric's unit, None where it is not estimated;
    `least_loss` how much worse it is at least, at the level of a fail, None without a bound.
    """

    estimate: Estimate
    to_pass: MarginVerdict
    to_fail: MarginVerdict
    least_loss: float | None
    gain: float | None


def judge_outcome(check: CheckDocument, seen: Observed, settings: CheckSettings) -> CheckResult:
    """Pass above −margin, fail below it, by bounds that hold at every look; else not decided.

    A pass is read at one-sided `alpha_promote`, a failure at `alpha` over the guardrails.
    """
    name, margin = check.setting("metric"), float(check.setting("margin"))
    why = _nothing_in(seen)
    if why:
        return CheckResult(check.label, Verdict.NO_DATA, f"{name}: {why}", _left_out(seen))
    metric = from_json(seen["data"])
    metric = replace(metric, spec=replace(metric.spec, margin=margin))
    judged = judge_metric(
        metric,
        alpha_pass=settings.alpha_promote,
        alpha_fail=settings.alpha / settings.guardrails,
    )
    verdict, why = _decide(judged, margin, _n(metric, CANARY))
    evidence = {**_record(metric, judged), **_left_out(seen)}
    return CheckResult(check.label, verdict, f"{_summary(metric, judged, seen)}: {why}", evidence)


def judge_metric(metric: MetricData, *, alpha_pass: float, alpha_fail: float) -> Judged:
    """Compare canary with control by the metric's margin, one-sided at each of the levels."""
    made = estimates.compare_arms(metric, CONTROL, CANARY)
    better = metric.spec.is_increase_better
    is_known = made.difference.state in (State.OK, State.NO_VARIANCE)
    # What bounds the loss from below is what bounds the gain from above.
    mirrored = replace(metric, spec=replace(metric.spec, is_increase_better=not better))
    return Judged(
        made,
        to_pass=_margin_verdict(metric, made, alpha_pass),
        to_fail=_margin_verdict(metric, made, alpha_fail),
        least_loss=_margin_verdict(mirrored, made, alpha_fail).bound,
        gain=made.difference.effect * (1.0 if better else -1.0) if is_known else None,
    )


def _margin_verdict(metric: MetricData, made: Estimate, alpha: float) -> MarginVerdict:
    verdict = judge_margin(
        metric.spec,
        made,
        estimates.rare_event_counts(metric, CONTROL, CANARY),
        alpha=alpha,
        planned_units=PLANNED_UNITS_DEFAULT,
        is_final=False,
        is_worse=False,
        stop_reason="",
    )
    if verdict is None:
        raise ValueError("a check of outcomes has a margin")
    return verdict


def _decide(judged: Judged, margin: float, canary_n: int) -> tuple[Verdict, str]:
    low, loss, gain = judged.to_pass.bound, judged.least_loss, judged.gain
    if judged.to_fail.state == "worse":
        by = f", by {loss:.3g} at least" if loss is not None and loss > margin else ""
        return Verdict.FAIL, f"proven worse by more than the margin{by}"
    if judged.to_pass.state == "not-worse":
        by = f", by {max(0.0, -low):.3g} at most" if low is not None and low > -margin else ""
        return Verdict.PASS, f"proven not worse by the margin{by}"
    if judged.estimate.difference.state is State.INVALID_DATA:
        return Verdict.PROVIDER_ERROR, judged.estimate.difference.reason
    if low is None or loss is None or gain is None:
        return Verdict.INSUFFICIENT_SAMPLE, judged.to_pass.reason
    why = f"{judged.to_pass.reason} (better by {low:.3g} to {-loss:.3g})"
    if gain < -margin:
        missing = _missing(canary_n, reach=-loss - gain, distance=-margin - gain)
        return Verdict.INCONCLUSIVE, f"worse than the margin, but not proven: {why}{missing}"
    return Verdict.INSUFFICIENT_SAMPLE, why + _missing(
        canary_n, reach=gain - low, distance=gain + margin
    )


def _missing(n: int, *, reach: float, distance: float) -> str:
    """Say about how many units of the canary decide if the difference stays: bounds narrow as √n.

    `reach` is how far the bound lies from the difference, `distance` how far the margin does.
    """
    if not 0.0 < distance < reach:
        return ""
    needed = n * (reach / distance) ** 2
    if needed > MISSING_MAX:
        return ""
    return f"; if the difference stays, about {needed:,.0f} units of the canary decide it"


# --- in words -------------------------------------------------------------------------------------


def _nothing_in(seen: Observed) -> str:
    """Return in words why there is nothing to judge, or nothing."""
    if "strata" in seen:
        return "an earlier release kept these statistics, and they are no longer read"
    if "data" not in seen:
        return str(seen.get("nothing") or "no unit of the canary has an outcome yet")
    metric, units = from_json(seen["data"]), int(seen["exposed"]["canary"])
    if _n(metric, CANARY):
        return ""
    if not units:
        return "no unit has met the canary alone yet"
    if seen["window_s"]:
        window = timedelta(seconds=int(seen["window_s"]))
        return f"none of the canary's {units} units has an outcome and its time of {window} over"
    if metric.spec.kind == "quantile":
        return f"no unit that first met the canary in step {seen['until_step'] + 1} has an outcome"
    return f"none of the canary's {units} units has an outcome yet"


def _summary(metric: MetricData, judged: Judged, seen: Observed) -> str:
    canary, control = (
        "–" if value is None else f"{value:.4g}"
        for value in (_value(metric, judged, side) for side in (CANARY, CONTROL))
    )
    over, of = judged.estimate.phase_summary, ""
    if metric.spec.kind == "quantile":
        of = f" of the units first met in step {seen['until_step'] + 1}"
    elif over is not None and over.phases > 1:
        of = f" on average over {over.phases} steps"
    n = f"n={_n(metric, CANARY)} vs {_n(metric, CONTROL)}"
    without = f", {over.left_out} of them without a counterpart" if over and over.left_out else ""
    margin = f"margin {metric.spec.margin:g}"
    return f"{metric.spec.name} {canary} vs stable {control}{of}, {margin}, {n}{without}"


def _n(metric: MetricData, side: str) -> int:
    """Return how many units of a side have a value."""
    arm = metric.arms.get(side)
    if arm is None:
        return 0
    if metric.spec.kind == "quantile":
        return arm.order.n if arm.order else 0
    return arm.comoments.n


def _value(metric: MetricData, judged: Judged, side: str) -> float | None:
    """Return the metric of a side: over several steps, as it is compared."""
    arm = metric.arms.get(side)
    if judged.estimate.phase_summary is not None:
        over = judged.estimate.phase_summary
        return over.treatment if side == CANARY else over.control
    return estimates.value_of(metric.spec, arm) if arm else None


def _record(metric: MetricData, judged: Judged) -> dict[str, JSON]:
    found = judged.estimate.difference
    return {
        "n": _n(metric, CANARY),
        "canary_n": _n(metric, CANARY),
        "canary_mean": _value(metric, judged, CANARY),
        "control_n": _n(metric, CONTROL),
        "control_mean": _value(metric, judged, CONTROL),
        "better_by": judged.gain,
        "low": judged.to_pass.bound,
        "high": None if judged.least_loss is None else -judged.least_loss,
        "margin": metric.spec.margin,
        "test": found.test,
        "standard_error": found.standard_error or None,
    }


def _left_out(seen: Observed) -> dict[str, JSON]:
    return {name: seen.get(name) for name in ("exposed", "met_both", "leaving", "until_step")}
