"""Judges rates against absolute bounds: of the canary, or of a shadow's answers.

With k events of n, bound q and alternatives p_j, E = mean_j (p_j/q)^k·((1−p_j)/(1−q))^(n−k) is a
test supermartingale: with p_j > q while the rate is at most q, with p_j < q while it is at least q
(a likelihood ratio against a rate on the other side of its denominator only shrinks; Wald 1945).
Hence P(sup E ≥ 1/α) ≤ α by Ville's inequality, for failing and for passing alike: neither verdict
rests on a point estimate, and both are valid at every look.

Each step has its own evidence, since a version that keeps a bound at 5 % of the traffic may exceed
it at 50 %. All steps together spend the plan's α once: each has an equal share of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apps.rollouts.check_kinds import ERROR_OBJECTIVE, LATENCY_OBJECTIVE, SHADOW_AGREEMENT
from apps.rollouts.checks import SHARE_WHOLE_BP, CheckSettings
from apps.rollouts.verdicts import JSON, CheckResult, Verdict, format_odds, format_percent
from contract import histogram

MULTIPLES_ABOVE = (1.5, 2.0, 3.0, 6.0, 12.0)
MULTIPLES_BELOW = (0.1, 0.25, 0.5, 0.75)
RATE_MAX = 0.99
# Stands for an infinite e-value, which JSON cannot hold: e^700 is near the largest float.
LOG_CERTAIN = 700.0
# The largest part of the evidence against a version that one interval may contribute: a pod that
# restarts loses every request of a second or two, and that alone must not prove anything.
INTERVAL_SHARE_MAX = 0.5


@dataclass(frozen=True)
class Part:
    """Exposures and events of one check interval."""

    n: int
    events: int


@dataclass(frozen=True)
class Objective:
    """At most the fraction `bound` of the exposures may be events.

    `label` names the rate, `counted` the exposures. `parts` are the step's intervals. `clump` is
    the number of exposures that come together, such as the rows of one request: they are one draw,
    so that the logarithm of the evidence is divided by it.
    """

    label: str
    bound: float
    parts: tuple[Part, ...]
    clump: float = 1.0
    counted: str = "exposures"

    @property
    def n(self) -> int:
        return sum(part.n for part in self.parts)

    @property
    def events(self) -> int:
        return sum(part.events for part in self.parts)


@dataclass(frozen=True)
class Proof:
    """The required proof: logarithms of the e-values to fail and to pass, and a minimum sample.

    `log_part_max` limits what one interval contributes towards failing.
    """

    log_fail: float
    log_pass: float
    samples_min: int
    log_part_max: float = math.inf

    @classmethod
    def of(cls, settings: CheckSettings, *, samples_min: int, steps: int) -> Proof:
        """Return the proof with an equal share of the check's α for each of its `steps`."""
        log_fail = settings.log_fail + math.log(max(1, steps))
        return cls(log_fail, settings.log_promote, samples_min, log_fail * INTERVAL_SHARE_MAX)


def judge_objectives(
    check: str,
    objectives: Sequence[Objective],
    proof: Proof,
    *,
    basis: str = "absolute bounds",
) -> CheckResult:
    """Judge absolute bounds together; the reason names their `basis`.

    To fail, the e-values are averaged, valid under any dependence (Vovk and Wang 2021). To pass,
    the smallest e-value counts: each bound must be proven.
    """
    n = min((objective.n for objective in objectives), default=0)
    if n == 0:
        return CheckResult(check, Verdict.NO_DATA, f"no exposures ({basis})", {"n": 0})
    figures = f"{'; '.join(map(_describe, objectives))} ({basis})"
    log_worse = _log_mean_exp([_log_beyond(each, proof.log_part_max) for each in objectives])
    log_within = min(map(_log_within, objectives))
    evidence: dict[str, JSON] = {
        "log_e_needed": proof.log_fail,
        "log_e_promote": proof.log_pass,
        "n": n,
        "absolute": True,
        "log_e_absolute": log_worse,
        "log_e_within": log_within,
    }
    is_beyond = any(each.events > each.bound * each.n for each in objectives)
    if log_worse >= proof.log_fail and is_beyond:
        verdict = Verdict.FAIL
        conclusion = f"proven above the limit (odds {format_odds(log_worse)})"
    elif n < proof.samples_min:
        verdict = Verdict.INSUFFICIENT_SAMPLE
        conclusion = f"at least {proof.samples_min:,} {objectives[0].counted} are needed"
    elif log_within >= proof.log_pass and not is_beyond:
        verdict = Verdict.PASS
        conclusion = f"proven within the limit (odds {format_odds(log_within)})"
    elif is_beyond:
        verdict = Verdict.INCONCLUSIVE
        conclusion = (
            "above the limit, but not proven "
            f"(odds {format_odds(log_worse)}, {format_odds(proof.log_fail)} needed)"
        )
    else:
        verdict = Verdict.INSUFFICIENT_SAMPLE
        conclusion = (
            "within the limit so far, but not proven "
            f"(odds {format_odds(log_within)}, {format_odds(proof.log_pass)} needed)"
        )
    return CheckResult(check, verdict, f"{figures}: {conclusion}", evidence)


def judge_error_objective(
    parts: Sequence[Part],
    unanswered: Sequence[Part] = (),
    *,
    limit_bp: int,
    settings: CheckSettings,
    steps: int = 1,
) -> CheckResult:
    """Judge whether at most `limit_bp` of 10,000 units have an error or no answer.

    `parts` are the step's intervals: units, and those with an error. `unanswered` are the assigned
    units, and those without an answer; units that timed out or were shed are only among these.
    `steps` is the number of the plan's steps with this check.
    """
    bound = limit_bp / SHARE_WHOLE_BP
    objectives = [Objective("error rate", bound, tuple(parts))]
    if any(part.events for part in unanswered):
        objectives.append(Objective("unanswered", bound, tuple(unanswered)))
    if objectives[0].n == 0 and len(objectives) > 1:
        # No unit was answered: only the unanswered ones can be judged.
        objectives = objectives[1:]
    proof = Proof.of(settings, samples_min=settings.min_samples, steps=steps)
    return judge_objectives(ERROR_OBJECTIVE, objectives, proof, basis="absolute bound")


def judge_latency_objective(
    intervals: Sequence[Mapping[int, int]],
    *,
    quantile_permille: int,
    limit_us: int,
    settings: CheckSettings,
    steps: int = 1,
) -> CheckResult:
    """Judge whether a latency quantile is within `limit_us`: at most 1 − q may be slower.

    `intervals` are histograms. They cannot split the bucket that holds the limit, so that up to 9 %
    above it still counts as within: rounding never fails a canary at its limit.
    """
    limit = f"{limit_us / 1000:g} ms"
    index = histogram.index_of(limit_us)
    parts = [Part(histogram.total(one), histogram.count_above(one, index)) for one in intervals]
    result = judge_objectives(
        LATENCY_OBJECTIVE,
        [
            Objective(
                f"answers slower than {limit}:",
                1.0 - quantile_permille / 1000,
                tuple(parts),
                counted="requests",
            )
        ],
        Proof.of(settings, samples_min=settings.min_samples, steps=steps),
        basis=f"p{quantile_permille / 10:g} within {limit}",
    )
    quantile = histogram.quantile_us(histogram.merge(intervals), quantile_permille / 1000)
    evidence = {**result.evidence, "quantile_us": quantile, "limit_us": limit_us}
    return CheckResult(result.check, result.verdict, result.reason, evidence)


def judge_shadow_agreement(
    *,
    compared: int,
    flips: int,
    beyond_tolerance: int,
    errors: int,
    dropped: int,
    agreement_min_bp: int,
    compared_min: int,
    settings: CheckSettings,
    copies: int | None = None,
    steps: int = 1,
) -> CheckResult:
    """Judge whether enough of a shadow's answers agree with stable's.

    `compared` answers (rows) came from both; they belong to `copies` requests (default: one each),
    and those of one request may all differ together. An answer may differ in its class (`flips`)
    and in its numbers (`beyond_tolerance`); both counts may include the same answers, so that only
    the larger one is certain. An error of the shadow is a disagreement; a dropped copy is no data.
    Raises ValueError if more answers differ than were compared.
    """
    differing = max(flips, beyond_tolerance)
    if differing > compared:
        raise ValueError(f"{differing} differing answers of {compared} compared ones")
    objective = Objective(
        "disagreement with stable",
        1.0 - agreement_min_bp / SHARE_WHOLE_BP,
        (Part(compared + errors, differing + errors),),
        clump=max(1.0, compared / copies) if copies else 1.0,
        counted="rows",
    )
    needed = Proof.of(settings, samples_min=compared_min, steps=steps)
    # A shadow's counts are for the whole step, so that no limit per interval applies.
    proof = Proof(needed.log_fail, needed.log_pass, compared_min)
    result = judge_objectives(SHADOW_AGREEMENT, [objective], proof, basis="copied requests")
    evidence: dict[str, JSON] = {
        **result.evidence,
        "compared": compared,
        "flips": flips,
        "beyond_tolerance": beyond_tolerance,
        "errors": errors,
        "dropped": dropped,
    }
    suffix = f"; {dropped} copies were dropped and not compared" if dropped else ""
    return CheckResult(result.check, result.verdict, result.reason + suffix, evidence)


def _describe(objective: Objective) -> str:
    rate = objective.events / objective.n if objective.n else 0.0
    return (
        f"{objective.label} {format_percent(rate)}, limit {format_percent(objective.bound)}, "
        f"after {objective.n:,} {objective.counted}"
    )


def _log_beyond(objective: Objective, log_part_max: float) -> float:
    """Return the evidence of a rate above the bound; min(factor, e^c) keeps its mean at most 1."""
    q = objective.bound
    if q >= RATE_MAX:
        # No alternative lies above such a bound, and one below it would fail healthy versions.
        return 0.0
    if q <= 0.0:
        # One event refutes "never".
        return LOG_CERTAIN if objective.events else 0.0
    return _log_mean_exp(
        [
            sum(
                min(log_part_max, _log_factor(part, p, q) / objective.clump)
                for part in objective.parts
            )
            for p in (min(RATE_MAX, q * multiple) for multiple in MULTIPLES_ABOVE)
        ]
    )


def _log_within(objective: Objective) -> float:
    """Return the evidence of a rate below the bound; "never" cannot be proven."""
    q = objective.bound
    if q >= 1.0:
        return LOG_CERTAIN
    if q <= 0.0:
        return 0.0
    whole = Part(objective.n, objective.events)
    return _log_mean_exp(
        [_log_factor(whole, q * multiple, q) / objective.clump for multiple in MULTIPLES_BELOW]
    )


def _log_factor(part: Part, p: float, q: float) -> float:
    quiet = part.n - part.events
    return part.events * math.log(p / q) + quiet * (math.log1p(-p) - math.log1p(-q))


def _log_mean_exp(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))
