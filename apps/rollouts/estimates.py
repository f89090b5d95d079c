"""How long a plan takes at a model's traffic, and whether it can decide at all: before it starts.

A step passes when each of its checks has proof that the version is not worse by the margin. For a
version that is as good as stable, that proof grows by a rate that is known beforehand: the expected
logarithm of the betting factor at the best bet (Kelly). Everything here is an expectation; chance
makes single rollouts shorter or longer. Pure: a plan and a rate of traffic in, times out.
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

# What bets that turn out wrong cost on the way: three are made, a fifth of the stake enters late,
# and the least of the processes is what counts.
LOG_COST = 1.0
# No version is taken to be free of errors.
ERROR_RATE_LEAST = 0.0005
BISECTIONS = 40
# Longer than any plan waits.
FOR_EVER_S = 1e12


@dataclass(frozen=True)
class UsualTraffic:
    """What a model gets: requests a second, and stable's errors and latency.

    `exposures_per_second` are units, each once in a check interval, and requests without one; None
    where it is not known, and then each request counts. `span_s` is what it was measured over.
    """

    per_second: float
    error_rate: float = 0.01
    latency: Counts = field(default_factory=dict)
    exposures_per_second: float | None = None
    span_s: float = 86_400.0

    def rate_of(self, check: str) -> float:
        """What `check` counts a second: latency is that of requests, all else that of units."""
        if check in {kinds.LATENCY, kinds.LATENCY_OBJECTIVE} or self.exposures_per_second is None:
            return self.per_second
        return self.exposures_per_second


@dataclass(frozen=True)
class Need:
    """What a check still needs of the canary in a step: so many answers, which take so long.

    Infinite where the check can never pass at this traffic.
    """

    check: str
    answers: float
    seconds: float


@dataclass(frozen=True)
class StepEstimate:
    """One step's expected time, None where it can never pass by itself.

    `limit_s` is how long it waits for data before it pauses for a person; `needs` are its checks
    with the slowest first; `unknown` are checks whose time nobody knows beforehand.
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

    `plan` is as it is followed. Proof is kept from step to step, so that the first ones take most
    of the time; a step that would pause is taken to be resumed by a person.
    """
    proof: dict[str, float] = {}
    return [_estimate(plan, index, traffic, proof) for index in range(len(plan.steps))]


def _estimate(
    plan: PlanDocument, index: int, traffic: UsualTraffic, proof: dict[str, float]
) -> StepEstimate:
    step = plan.steps[index]
    bake_s = plan.bake_of(index).total_seconds()
    asked = [check for check in step.questions if check.effective_mode != "dry-run"]
    needs = [*_needs_of_requests(step, traffic)]
    for check in asked:
        needs += _needs_of(plan, step, check, traffic, proof)
    slowest = max((need.seconds for need in needs), default=0.0)
    expected_s = max(bake_s, slowest)
    for check in asked:
        _keep(proof, _growths(plan, step, check, traffic), expected_s)
        if check.check in OBJECTIVE_OF:
            _keep(proof, {_seen(check): _canary(step, check, traffic)}, expected_s)
    unknown = [check.label for check in asked if check.check not in ESTIMATED]
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


def _seen(check: CheckDocument) -> str:
    """Under which name the exposures of the rollout so far are kept."""
    return f"{check.label} exposures"


def _canary(step: StepDocument, check: CheckDocument, traffic: UsualTraffic) -> float:
    """How much of what `check` counts the canary gets a second."""
    return traffic.rate_of(check.check) * step.weight_bp / WHOLE_BP


# The checks whose time can be foreseen.
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
    """What one check of the step needs beyond the proof so far."""
    canary = _canary(step, check, traffic)
    if step.weight_bp == WHOLE_BP and check.check in OBJECTIVE_OF:
        if not deciders_of(step, check.check):
            yield Need(check.label, math.inf, math.inf)
        return
    counts = _counts_needed(plan, step, check)
    if check.check in OBJECTIVE_OF:
        # These count the whole rollout, the others the step.
        counts -= proof.get(_seen(check), 0.0)
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
    """How many exposures of the canary the check asks for, whatever they were."""
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
    """How fast each process's proof of safety grows in the step, in nats a second."""
    canary = _canary(step, check, traffic)
    share = _share(plan, step)
    compared = _divide(canary, share) if share else 0.0
    settings = _settings(plan)
    if check.check in OBJECTIVE_OF and not 0.0 < share < 1.0:
        return {}
    if check.check in {kinds.ERROR_RATE, kinds.UNANSWERED}:
        # Whoever gets an error is left without an answer as well.
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
    """The canary's share of what is compared: of an equal slice, half."""
    if plan.control == "equal" and 0 < step.weight_bp < WHOLE_BP:
        return step.weight_bp / (step.weight_bp + min(step.weight_bp, WHOLE_BP - step.weight_bp))
    return step.weight_bp / WHOLE_BP


def _settings(plan: PlanDocument) -> CheckSettings:
    return CheckSettings(margin_bp=plan.margin_bp, alpha=plan.alpha_ppm / 1_000_000)


def growth(share: float, rate: float, margin: float) -> float:
    """Nats that proof of "not worse by `margin`" gains from one request of either arm, at best.

    Both arms have events at `rate`; the canary gets `share`. With v = 1/(1−w) + δ won on a
    control's event, u = 1/w − δ lost on a canary's and δ won on none, it is the maximum over λ of
    (1−w)·p·ln(1 + λv) + w·p·ln(1 − λu) + (1−p)·ln(1 + λδ), which is concave in λ (Kelly 1956; the
    factor is that of the mirror process in `apps.rollouts.eprocess`).
    """
    won, lost = 1.0 / (1.0 - share) + margin, 1.0 / share - margin
    parts = (((1.0 - share) * rate, won), (share * rate, -lost), (1.0 - rate, margin))

    def slope(bet: float) -> float:
        return sum(chance * gain / (1.0 + bet * gain) for chance, gain in parts)

    bet = _root(slope, (1.0 - 1e-9) / lost)
    return sum(chance * math.log1p(bet * gain) for chance, gain in parts)


def _root(falling: Callable[[float], float], high: float) -> float:
    low = 0.0
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if falling(middle) > 0.0 else (low, middle)
    return low


def _divergence(rate: float, bound: float) -> float:
    """Nats by which one exposure at `rate` speaks for a rate below `bound`; 0 where it is not."""
    if rate >= bound:
        return 0.0
    return rate * math.log(rate / bound) + (1.0 - rate) * math.log((1.0 - rate) / (1.0 - bound))


def _divide(amount: float, rate: float) -> float:
    return amount / rate if rate > 0.0 else math.inf if amount > 0.0 else 0.0
