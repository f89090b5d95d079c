"""Absolute objectives: error rates of both verdicts, with a level that the steps share."""

from __future__ import annotations

from collections.abc import Iterator

from apps.rollouts.checks import CheckSettings
from apps.rollouts.objectives import Part, judge_error_objective
from apps.rollouts.verdicts import Verdict
from bench.bars import Bar, Rng, share

STEPS = 5
LOOKS = 30
PER_LOOK = 100
LIMIT_BP = 100
# The cost of a look grows with the number of intervals before it.
RUNS_MAX = 400


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on verdicts of a step at, beyond and within its bound."""
    runs = min(runs, RUNS_MAX)
    settings = CheckSettings()
    for rate, name in ((0.011, "1.1 % errors against a bound of 1 %"), (0.01, "exactly the bound")):
        passed = sum(_ever(rng, Verdict.PASS, rate) for _ in range(runs))
        yield share(f"{name}: ever passes in {LOOKS} looks", passed, runs, settings.alpha_promote)
    failed = sum(any(_ever(rng, Verdict.FAIL, 0.01) for _ in range(STEPS)) for _ in range(runs))
    name = f"exactly the bound: ever fails in {STEPS} steps"
    yield share(name, failed, runs, settings.alpha)
    passed = sum(_ever(rng, Verdict.PASS, 0.002) for _ in range(runs))
    name = f"0.2 % errors: proven within in {LOOKS * PER_LOOK:,} requests"
    yield share(name, passed, runs, 0.95, is_most=False)
    failed = sum(_ever(rng, Verdict.FAIL, 0.03) for _ in range(runs))
    name = f"3 % errors: proven beyond in {LOOKS * PER_LOOK:,} requests"
    yield share(name, failed, runs, 0.95, is_most=False)


def _ever(rng: Rng, verdict: Verdict, rate: float) -> bool:
    """Return whether one of five steps of a plan ever gets the verdict."""
    events = rng.binomial(PER_LOOK, rate, LOOKS)
    parts = [Part(PER_LOOK, int(count)) for count in events]
    return any(
        judge_error_objective(
            parts[: look + 1], limit_bp=LIMIT_BP, settings=CheckSettings(), steps=STEPS
        ).verdict
        is verdict
        for look in range(LOOKS)
    )
