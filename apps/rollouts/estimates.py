"""Estimates how long a plan takes at a model's traffic, and whether it can decide at all.

A step passes when each of its checks has proof that the version is not worse by the margin. For a
version that is as good as stable, the growth rate of that proof is known beforehand: the expected
logarithm of the betting factor at the best bet (Kelly). All results are expectations; chance makes
single rollouts shorter or longer. Pure: a plan and a rate of traffic in, times out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from apps.rollouts import check_kinds as kinds
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.checks import QUANTILES_PERMILLE, CheckSettings
from apps.rollouts.no_control import OBJECTIVE_OF, deciders_of
from apps.rollouts.plans import WHOLE_BP, PlanDocument, StepDocument
from apps.rollouts.sample_ratio import EXPECTED_MIN
from contract import histogram
from contract.histogram import Counts

# The expected cost of suboptimal bets: there are three, a fifth of the stake enters late, and the
# smallest of the processes counts.
LOG_COST = 1.0
# The assumed minimum: no version is free of errors.
ERROR_RATE_LEAST = 0.0005
BISECTIONS = 40
# Longer than any plan waits.
FOR_EVER_S = 1e12


@dataclass(frozen=True)
class UsualTraffic:
    """A model's traffic: requests per second, and stable's errors and latency.

    `exposures_per_second` counts units, each once in a check interval, and requests without a unit;
    None if unknown, then each request counts. `span_s` is the measured period in seconds.
    """

    per_second: float
    error_rate: float = 0.01
    latency: Counts = field(default_factory=dict)
    exposures_per_second: float | None = None
    span_s: float = 86_400.0

    def rate_of(self, check: str) -> float:
        """Return the counts of `check` per second: requests for latency, exposures for all else."""
        if check in {kinds.LATENCY, kinds.LATENCY_OBJECTIVE} or self.exposures_per_second is None:
            return self.per_second
        return self.exposures_per_second


@dataclass(frozen=True)
class Need:
    """The answers of the canary that a check still needs in a step, and the seconds they take.

    Both are infinite where the check can never pass at this traffic.
    """

    check: str
    answers: float
    seconds: float


@dataclass(frozen=True)
class StepEstimate:
    """One step's expected time, None where it can never pass by itself.

    `limit_s` is how long it waits for data before it pauses for a person; `needs` has the slowest
    check first; `unknown` has the checks whose time cannot be estimated.
    """

    number: int
    weight_bp: int
    bake_s: float
    limit_s: float
    expected_s: float | None
    needs: tuple[Need, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def is_in_time(self) -> bool:
        return self.expected_s is not None and self.expected_s <= self.limit_s


def estimate_plan(plan: PlanDocument, traffic: UsualTraffic) -> list[StepEstimate]:
    """Return the steps' expected times for a version that is as good as stable.

    `plan` is the plan as followed. Proof carries over to later steps, so that the first steps take
    most of the time; a step that would pause is assumed to be resumed by a person.
    """
    proof: dict[str, float] = {}
    return [_estimate(plan, index, traffic, proof) for index in range(len(plan.steps))]


def _estimate(
    plan: PlanDocument, index: int, traffic: UsualTraffic, proof: dict[str, float]
) -> StepEstimate:
    step = plan.steps[index]
    bake_s = plan.bake_of(index).total_seconds()
    checks = [check for check in step.check_documents if check.effective_mode != "dry-run"]
    needs = [*_needs_of_requests(step, traffic)]
    for check in checks:
        needs += _needs_of(plan, step, check, traffic, proof)
    slowest = max((need.seconds for need in needs), default=0.0)
    expected_s = max(bake_s, slowest)
    for check in checks:
        _keep(proof, _growths(plan, step, check, traffic), expected_s)
        if check.check in OBJECTIVE_OF:
            _keep(proof, {_exposures_key(check): _canary(step, check, traffic)}, expected_s)
    unknown = [check.label for check in checks if check.check not in ESTIMATED]
    return StepEstimate(
        number=index + 1,
        weight_bp=step.weight_bp,
        bake_s=bake_s,
        limit_s=max(bake_s * plan.extend_max, float(plan.wait_max_s)),
        expected_s=expected_s if math.isfinite(expected_s) else None,
        needs=tuple(sorted(needs, key=lambda need: -need.seconds)),
        unknown=(*unknown, *(["the approval of a person"] if step.gate == "person" else [])),
    )


def _keep(proof: dict[str, float], growths: Mapping[str, float], seconds: float) -> None:
    for name, growth in growths.items():
        proof[name] = proof.get(name, 0.0) + growth * min(seconds, FOR_EVER_S)


def _exposures_key(check: CheckDocument) -> str:
    """Return the key of the rollout's exposures so far."""
    return f"{check.label} exposures"


def _canary(step: StepDocument, check: CheckDocument, traffic: UsualTraffic) -> float:
    """Return the canary's counts of `check` per second."""
    return traffic.rate_of(check.check) * step.weight_bp / WHOLE_BP


# The checks whose time can be estimated.
ESTIMATED = {
    kinds.ERROR_RATE,
    kinds.UNANSWERED,
    kinds.LATENCY,
    kinds.SAMPLE_RATIO,
    kinds.ERROR_THRESHOLD,
    kinds.ERROR_OBJECTIVE,
    kinds.LATENCY_OBJECTIVE,
}


def _needs_of_requests(step: StepDocument, traffic: UsualTraffic) -> Iterator[Need]:
    if step.requests_min:
        rate = traffic.per_second * step.weight_bp / WHOLE_BP
        yield Need("requests", step.requests_min, _divide(step.requests_min, rate))


def _needs_of(
    plan: PlanDocument,
    step: StepDocument,
    check: CheckDocument,
    traffic: UsualTraffic,
    proof: Mapping[str, float],
) -> Iterator[Need]:
    """Yield the needs of one check of the step beyond the proof so far."""
    canary = _canary(step, check, traffic)
    if step.weight_bp == WHOLE_BP and check.check in OBJECTIVE_OF:
        if not deciders_of(step, check.check):
            yield Need(check.label, math.inf, math.inf)
        return
    counts = _counts_needed(plan, step, check)
    if check.check in OBJECTIVE_OF:
        # These count the whole rollout, the others the step.
        counts -= proof.get(_exposures_key(check), 0.0)
    if counts > 0.0:
        yield Need(check.label, counts, _divide(counts, canary))
    needed = -math.log(_settings(plan).alpha_promote) + LOG_COST
    growths = _growths(plan, step, check, traffic)
    if growths:
        seconds = max(
            _divide(max(0.0, needed - proof.get(name, 0.0)), growth)
            for name, growth in growths.items()
        )
        yield Need(check.label, seconds * canary, seconds)


def _counts_needed(plan: PlanDocument, step: StepDocument, check: CheckDocument) -> float:
    """Return the minimum number of the canary's exposures, whatever their results."""
    if check.check == kinds.SAMPLE_RATIO:
        share = _share(plan, step)
        return EXPECTED_MIN * share / min(share, 1.0 - share) if 0.0 < share < 1.0 else 0.0
    if check.check == kinds.ERROR_THRESHOLD:
        return float(check.setting("samples_min"))
    if check.check in {
        kinds.ERROR_RATE,
        kinds.UNANSWERED,
        kinds.LATENCY,
        kinds.ERROR_OBJECTIVE,
        kinds.LATENCY_OBJECTIVE,
    }:
        return float(_settings(plan).min_samples)
    return 0.0


def _growths(
    plan: PlanDocument, step: StepDocument, check: CheckDocument, traffic: UsualTraffic
) -> dict[str, float]:
    """Return the growth of each process's proof of safety in the step, in nats per second."""
    canary = _canary(step, check, traffic)
    share = _share(plan, step)
    compared = _divide(canary, share) if share else 0.0
    settings = _settings(plan)
    if check.check in OBJECTIVE_OF and not 0.0 < share < 1.0:
        return {}
    if check.check in {kinds.ERROR_RATE, kinds.UNANSWERED}:
        # The error rate stands for unanswered units too: a unit with an error has no answer.
        rate = max(traffic.error_rate, ERROR_RATE_LEAST)
        return {check.label: compared * growth(share, rate, plan.margin_bp / WHOLE_BP)}
    if check.check == kinds.LATENCY:
        return {
            f"{check.label} p{q // 10}": compared
            * growth(share, 1.0 - q / 1_000, settings.quantile_margin(q))
            for q in QUANTILES_PERMILLE
        }
    if check.check == kinds.ERROR_OBJECTIVE:
        rate = max(traffic.error_rate, ERROR_RATE_LEAST)
        return {check.label: canary * _divergence(rate, check.setting("limit_bp") / WHOLE_BP)}
    if check.check == kinds.LATENCY_OBJECTIVE and traffic.latency:
        slow = histogram.count_above(
            traffic.latency, histogram.index_of(check.setting("limit_us"))
        ) / histogram.total(traffic.latency)
        bound = 1.0 - check.setting("quantile_permille") / 1_000
        return {check.label: canary * _divergence(max(slow, ERROR_RATE_LEAST), bound)}
    return {}


def _share(plan: PlanDocument, step: StepDocument) -> float:
    """Return the canary's share of the compared traffic: one half with an equal slice."""
    if plan.control == "equal" and 0 < step.weight_bp < WHOLE_BP:
        return step.weight_bp / (step.weight_bp + min(step.weight_bp, WHOLE_BP - step.weight_bp))
    return step.weight_bp / WHOLE_BP


def _settings(plan: PlanDocument) -> CheckSettings:
    return CheckSettings(margin_bp=plan.margin_bp, alpha=plan.alpha_ppm / 1_000_000)


def growth(share: float, rate: float, margin: float) -> float:
    """Return the most nats that proof of "not worse by `margin`" gains per request of either arm.

    Both arms have events at `rate`; the canary gets `share`. With v = 1/(1−w) + δ gained per
    control event, u = 1/w − δ lost per canary event and δ gained without one, it is the maximum of
    (1−w)·p·ln(1 + λv) + w·p·ln(1 − λu) + (1−p)·ln(1 + λδ) over λ, which is concave (Kelly 1956;
    the factor is that of the mirror process in `apps.rollouts.eprocess`).
    """
    gain_control, loss_canary = 1.0 / (1.0 - share) + margin, 1.0 / share - margin
    parts = (
        ((1.0 - share) * rate, gain_control),
        (share * rate, -loss_canary),
        (1.0 - rate, margin),
    )

    def slope(bet: float) -> float:
        return sum(chance * gain / (1.0 + bet * gain) for chance, gain in parts)

    bet = _root(slope, (1.0 - 1e-9) / loss_canary)
    return sum(chance * math.log1p(bet * gain) for chance, gain in parts)


def _root(falling: Callable[[float], float], high: float) -> float:
    low = 0.0
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if falling(middle) > 0.0 else (low, middle)
    return low


def _divergence(rate: float, bound: float) -> float:
    """Return the nats per exposure at `rate` for a rate below `bound`; 0 if `rate` is not below."""
    if rate >= bound:
        return 0.0
    return rate * math.log(rate / bound) + (1.0 - rate) * math.log((1.0 - rate) / (1.0 - bound))


def _divide(amount: float, rate: float) -> float:
    return amount / rate if rate > 0.0 else math.inf if amount > 0.0 else 0.0
