"""The whole reading of one metric: health first, then each treatment against control.

While an experiment runs the sequential reading decides, at the planned end the fixed-horizon one.
Each has half of α, so that both together keep it. What cannot be judged is a named state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from apps.experiments.stats.analysis import Analysis, ArmComparison, Direction, Outcome
from apps.experiments.stats.arms import ArmSummary, Kind
from apps.experiments.stats.comparison import (
    Difference,
    Reading,
    State,
    compare_means,
    compare_rates,
    read_fixed,
)
from apps.experiments.stats.moments import Moments
from apps.experiments.stats.sentences import sentence
from apps.experiments.stats.sequential import read_sequential, silence
from apps.experiments.stats.srm import SampleRatio, check_sample_ratio

__all__ = ["Analysis", "ArmComparison", "ArmSummary", "Moments", "State", "analyse"]


def analyse(
    variants: Sequence[ArmSummary],
    *,
    kind: Kind,
    direction: Direction = "increase",
    alpha: float = 0.05,
    planned_units: int | None = None,
    is_final: bool = False,
) -> Analysis:
    """Judge one metric of an experiment with one control and any number of treatments.

    `alpha` bounds the chance of any false verdict and is split evenly over the treatments;
    `direction` says which way is better; `planned_units` is the planned size of all arms together.
    The fixed-horizon reading decides only with `is_final` and the planned size reached: stopping
    early is a look like any other. Raises ValueError for arguments that no data can mend: not
    exactly one control, duplicate names, weights that are negative or all 0, alpha outside (0, 1).
    """
    _check_arguments(variants, alpha, planned_units)
    reached = planned_units is not None and sum(arm.units for arm in variants) >= planned_units
    empty = Analysis(
        kind=kind,
        direction=direction,
        alpha=alpha,
        planned_units=planned_units,
        phase="final" if is_final and reached else "running",
        arms=tuple(variants),
    )
    result = _judge(empty)
    return replace(result, verdict=sentence(result))


def _judge(empty: Analysis) -> Analysis:
    for arm in empty.arms:
        if (wrong := arm.why_invalid(empty.kind)) is not None:
            return replace(empty, state=State.INVALID_DATA, reason=f"{arm.name}: {wrong}")
    ratio = check_sample_ratio(
        [arm.units for arm in empty.arms],
        [arm.weight_bp for arm in empty.arms],
        is_one_look=empty.phase == "final",
    )
    treatments = [arm for arm in empty.arms if not arm.is_control]
    compared = tuple(_compare(empty, arm, len(treatments)) for arm in treatments)
    found = replace(empty, sample_ratio=ratio, comparisons=compared)
    if ratio.state in (State.SRM, State.UNEXPECTED_UNITS):
        return _without_verdict(found, ratio)
    if not compared:
        return replace(found, reason="there is no treatment to compare with control")
    judged = next((c for c in compared if c.state is State.OK), compared[0])
    return replace(found, state=judged.state, reason=judged.reason, winner=_winner(compared))


def _compare(result: Analysis, arm: ArmSummary, treatments: int) -> ArmComparison:
    control, kind = result.control, result.kind
    if kind == "proportion":
        found = compare_rates(control.n, control.events, arm.n, arm.events)
        silent = silence(control.n, arm.n, (control.events, arm.events))
    else:
        found = compare_means(control.moments, arm.moments)
        silent = silence(control.n, arm.n)
    level = result.alpha / 2.0 / treatments
    fixed = read_fixed(found, level)
    running = read_sequential(
        found,
        n=control.n + arm.n,
        alpha=level,
        planned_units=result.planned_units,
        silent=silent,
    )
    deciding = fixed if result.phase == "final" else running
    known = min(control.n, arm.n) > 0
    return ArmComparison(
        arm=arm.name,
        state=deciding.state,
        reason=deciding.reason,
        outcome=_outcome(found, deciding, result.direction),
        test=found.test,
        difference=found.difference if known else None,
        standard_error=found.standard_error if found.state is State.OK else None,
        uplift=found.uplift if known else None,
        deciding="fixed-horizon" if result.phase == "final" else "sequential",
        sequential=running,
        fixed=fixed,
    )


def _outcome(found: Difference, deciding: Reading, direction: Direction) -> Outcome:
    if not deciding.is_significant:
        return "undecided"
    return "better" if (found.difference > 0.0) == (direction == "increase") else "worse"


def _without_verdict(found: Analysis, ratio: SampleRatio) -> Analysis:
    """The numbers stay visible, but nothing in them counts as significant."""
    silenced = tuple(
        replace(
            compared,
            state=ratio.state,
            reason=ratio.reason,
            outcome="undecided",
            sequential=replace(compared.sequential, is_significant=False),
            fixed=replace(compared.fixed, is_significant=False),
        )
        for compared in found.comparisons
    )
    return replace(found, state=ratio.state, reason=ratio.reason, comparisons=silenced)


def _winner(compared: Sequence[ArmComparison]) -> str | None:
    """The better arm with the largest effect; there is none where nothing is proven better."""
    better = [c for c in compared if c.outcome == "better" and c.difference is not None]
    best = max(better, key=lambda c: abs(c.difference or 0.0), default=None)
    return best.arm if best else None


def _check_arguments(
    variants: Sequence[ArmSummary], alpha: float, planned_units: int | None
) -> None:
    if sum(arm.is_control for arm in variants) != 1:
        raise ValueError("exactly one variant must be the control")
    if len({arm.name for arm in variants}) != len(variants):
        raise ValueError("variants must have different names")
    weights = [arm.weight_bp for arm in variants]
    if min(weights) < 0 or sum(weights) == 0:
        raise ValueError("weights must not be negative, nor all of them 0")
    if not 0.0 < alpha < 1.0:
        raise ValueError("alpha must lie between 0 and 1")
    if planned_units is not None and planned_units < 1:
        raise ValueError("the planned size must be at least 1")
