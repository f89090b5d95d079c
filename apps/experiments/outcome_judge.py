"""Evaluates the outcomes of a rollout with the guardrail test of experiments. Pure functions.

The estimate, its minimum sample and the non-inferiority test come from `stats`. The steps of a
rollout are phases there: shares differ between steps, so that units are compared within each step.
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
from apps.rollouts.external_checks import Observation
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

CANARY, CONTROL = "canary", "control"
# The largest number of missing units that a message states.
MISSING_MAX = 1e9


# --- the format of the decision log
# ------------------------------------------------------------------


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
    """Return the metric of a `to_json` document.

    Raises msgspec.ValidationError if it is invalid.
    """
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
class Judgement:
    """The comparison of canary and control, at the level of a pass and at that of a fail.

    `gain` is the estimated gain of the canary in the metric's unit, None without an estimate.
    `least_loss` is the lower bound of its loss at the level of a fail, None without a bound.
    """

    estimate: Estimate
    to_pass: MarginVerdict
    to_fail: MarginVerdict
    least_loss: float | None
    gain: float | None


def judge_outcome(
    check: CheckDocument, observed: Observation, settings: CheckSettings
) -> CheckResult:
    """Return a pass above −margin, a fail below it, else no decision; valid at every look.

    A pass uses the one-sided level `alpha_promote`, a fail `alpha` divided by the guardrails.
    """
    name, margin = check.setting("metric"), float(check.setting("margin"))
    reason = _no_data_reason(observed)
    if reason:
        return CheckResult(check.label, Verdict.NO_DATA, f"{name}: {reason}", _left_out(observed))
    metric = from_json(observed["data"])
    metric = replace(metric, spec=replace(metric.spec, margin=margin))
    judgement = judge_metric(
        metric,
        alpha_pass=settings.alpha_promote,
        alpha_fail=settings.alpha / settings.guardrails,
    )
    verdict, reason = _decide(judgement, margin, _n(metric, CANARY))
    evidence = {**_record(metric, judgement), **_left_out(observed)}
    return CheckResult(
        check.label, verdict, f"{_summary(metric, judgement, observed)}: {reason}", evidence
    )


def judge_metric(metric: MetricData, *, alpha_pass: float, alpha_fail: float) -> Judgement:
    """Compare canary with control by the metric's margin, one-sided at each level."""
    estimate = estimates.compare_arms(metric, CONTROL, CANARY)
    better = metric.spec.is_increase_better
    is_known = estimate.difference.state in (State.OK, State.NO_VARIANCE)
    # The lower bound of the loss is the upper bound of the gain.
    mirrored = replace(metric, spec=replace(metric.spec, is_increase_better=not better))
    return Judgement(
        estimate,
        to_pass=_margin_verdict(metric, estimate, alpha_pass),
        to_fail=_margin_verdict(metric, estimate, alpha_fail),
        least_loss=_margin_verdict(mirrored, estimate, alpha_fail).bound,
        gain=estimate.difference.effect * (1.0 if better else -1.0) if is_known else None,
    )


def _margin_verdict(metric: MetricData, estimate: Estimate, alpha: float) -> MarginVerdict:
    verdict = judge_margin(
        metric.spec,
        estimate,
        estimates.rare_event_counts(metric, CONTROL, CANARY),
        alpha=alpha,
        planned_units=PLANNED_UNITS_DEFAULT,
        is_final=False,
        is_worse=False,
        stop_reason="",
    )
    if verdict is None:
        raise ValueError("an outcome check must have a margin")
    return verdict


def _decide(judgement: Judgement, margin: float, canary_n: int) -> tuple[Verdict, str]:
    low, loss, gain = judgement.to_pass.bound, judgement.least_loss, judgement.gain
    if judgement.to_fail.state == "worse":
        by = f", by {loss:.3g} at least" if loss is not None and loss > margin else ""
        return Verdict.FAIL, f"proven worse by more than the margin{by}"
    if judgement.to_pass.state == "not-worse":
        by = f", by {max(0.0, -low):.3g} at most" if low is not None and low > -margin else ""
        return Verdict.PASS, f"proven not worse by the margin{by}"
    if judgement.estimate.difference.state is State.INVALID_DATA:
        return Verdict.PROVIDER_ERROR, judgement.estimate.difference.reason
    if low is None or loss is None or gain is None:
        return Verdict.INSUFFICIENT_SAMPLE, judgement.to_pass.reason
    reason = f"{judgement.to_pass.reason} (better by {low:.3g} to {-loss:.3g})"
    if gain < -margin:
        missing = _missing(canary_n, reach=-loss - gain, distance=-margin - gain)
        return Verdict.INCONCLUSIVE, f"worse than the margin, but not proven: {reason}{missing}"
    return Verdict.INSUFFICIENT_SAMPLE, reason + _missing(
        canary_n, reach=gain - low, distance=gain + margin
    )


def _missing(n: int, *, reach: float, distance: float) -> str:
    """Return a text with the number of canary units for a decision if the difference stays.

    Bounds narrow as √n. `reach` is the distance from the difference to the bound, `distance` that
    to the margin.
    """
    if not 0.0 < distance < reach:
        return ""
    needed = n * (reach / distance) ** 2
    if needed > MISSING_MAX:
        return ""
    return f"; if the difference stays, about {needed:,.0f} units of the canary decide it"


# --- messages -------------------------------------------------------------------------------------


def _no_data_reason(observed: Observation) -> str:
    """Return why there are no data to evaluate, or an empty string."""
    if "strata" in observed:
        return "these statistics are in the format of an earlier release"
    if "data" not in observed:
        return str(observed.get("nothing") or "no unit of the canary has an outcome yet")
    metric, units = from_json(observed["data"]), int(observed["exposed"]["canary"])
    if _n(metric, CANARY):
        return ""
    if not units:
        return "no unit was exposed to the canary alone yet"
    if observed["window_s"]:
        window = timedelta(seconds=int(observed["window_s"]))
        return f"none of the canary's {units} units has an outcome and a closed window of {window}"
    if metric.spec.kind == "quantile":
        step = observed["until_step"] + 1
        return f"no unit first exposed to the canary in step {step} has an outcome"
    return f"none of the canary's {units} units has an outcome yet"


def _summary(metric: MetricData, judgement: Judgement, observed: Observation) -> str:
    canary, control = (
        "–" if value is None else f"{value:.4g}"
        for value in (_value(metric, judgement, side) for side in (CANARY, CONTROL))
    )
    phases, scope = judgement.estimate.phase_summary, ""
    if metric.spec.kind == "quantile":
        scope = f" of the units first exposed in step {observed['until_step'] + 1}"
    elif phases is not None and phases.phases > 1:
        scope = f" on average over {phases.phases} steps"
    n = f"n={_n(metric, CANARY)} vs {_n(metric, CONTROL)}"
    left_out = f", {phases.left_out} of them not compared" if phases and phases.left_out else ""
    margin = f"margin {metric.spec.margin:g}"
    return f"{metric.spec.name} {canary} vs stable {control}{scope}, {margin}, {n}{left_out}"


def _n(metric: MetricData, side: str) -> int:
    """Return the number of units of an arm that have a value."""
    arm = metric.arms.get(side)
    if arm is None:
        return 0
    if metric.spec.kind == "quantile":
        return arm.order.n if arm.order else 0
    return arm.comoments.n


def _value(metric: MetricData, judgement: Judgement, side: str) -> float | None:
    """Return the metric of an arm, over several steps as compared."""
    arm = metric.arms.get(side)
    if judgement.estimate.phase_summary is not None:
        phases = judgement.estimate.phase_summary
        return phases.treatment if side == CANARY else phases.control
    return estimates.value_of(metric.spec, arm) if arm else None


def _record(metric: MetricData, judgement: Judgement) -> dict[str, JSON]:
    difference = judgement.estimate.difference
    return {
        "n": _n(metric, CANARY),
        "canary_n": _n(metric, CANARY),
        "canary_mean": _value(metric, judgement, CANARY),
        "control_n": _n(metric, CONTROL),
        "control_mean": _value(metric, judgement, CONTROL),
        "better_by": judgement.gain,
        "low": judgement.to_pass.bound,
        "high": None if judgement.least_loss is None else -judgement.least_loss,
        "margin": metric.spec.margin,
        "test": difference.test,
        "standard_error": difference.standard_error or None,
    }


def _left_out(observed: Observation) -> dict[str, JSON]:
    return {name: observed.get(name) for name in ("exposed", "met_both", "leaving", "until_step")}
