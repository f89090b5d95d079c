"""What a check may be: its question, what its failure does, its settings with their bounds.

A plan names a check by its kind alone, or as a document with settings. Both are refused when the
plan is saved if they say something that no check would heed: a typo must not pass for a check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from apps.lib.errors import Invalid
from apps.rollouts.verdicts import JSON, Verdict

ERROR_RATE = "error-rate"
LATENCY = "latency"
UNANSWERED = "unanswered"
SAMPLE_RATIO = "sample-ratio"
SMOKE = "smoke"
ERROR_THRESHOLD = "error-threshold"
ERROR_OBJECTIVE = "error-objective"
LATENCY_OBJECTIVE = "latency-objective"
SHADOW_AGREEMENT = "shadow-agreement"
SHADOW_ACCURACY = "shadow-accuracy"
OUTCOME = "outcome"
PROMETHEUS = "prometheus"
WEBHOOK = "webhook"

# A failed guardrail rolls back, a failed signal pauses, a failed dry run is only recorded.
Mode = Literal["guardrail", "signal", "dry-run"]
# What a verdict that is neither pass nor fail leads to once the bake time is over.
OnVerdict = Literal["hold", "pause", "roll back"]
UNDECIDED = (
    Verdict.INCONCLUSIVE,
    Verdict.INSUFFICIENT_SAMPLE,
    Verdict.NO_DATA,
    Verdict.PROVIDER_ERROR,
)
# Nothing but data may roll back: what was not seen, or not enough of it, never does.
MAY_ROLL_BACK = {Verdict.INCONCLUSIVE}


class CheckDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One check of a step.

    `mode` is the kind's own unless given. `on` says what becomes of a verdict that is neither pass
    nor fail; by default the step holds. `name` tells two checks of one kind apart.
    """

    check: str
    mode: Mode | None = None
    on: dict[str, OnVerdict] = {}
    settings: dict[str, Any] = {}
    name: str = ""

    @property
    def label(self) -> str:
        return self.name or self.check

    @property
    def kind(self) -> CheckKind:
        return KINDS[self.check]

    @property
    def effective_mode(self) -> Mode:
        return self.mode or self.kind.mode

    def setting(self, name: str) -> Any:
        """Return a setting's value, or its default."""
        return self.settings.get(name, self.kind.settings[name].default)


@dataclass(frozen=True)
class Setting:
    """One setting of a kind of check: what it means, and what it may be."""

    told: str
    type: type[int] | type[float] | type[str]
    default: JSON = None
    least: float | None = None
    most: float | None = None
    is_required: bool = False

    def problem_of(self, value: object) -> str:
        """Return in words what is wrong with `value`, or nothing."""
        types = (int, float) if self.type is float else (self.type,)
        if isinstance(value, bool) or not isinstance(value, types):
            return f"must be {KIND_OF_VALUE[self.type]}"
        if isinstance(value, str):
            if NUL in value:
                return "must not contain a null character"
            return "" if value.strip() else "must not be empty"
        assert isinstance(value, int | float)
        if value != value or abs(value) > MOST_OF_ALL:
            return "must be a finite number"
        if self.least is not None and value < self.least:
            return f"must be at least {self.least:g}"
        if self.most is not None and value > self.most:
            return f"must be at most {self.most:g}"
        return ""


# PostgreSQL keeps no such text, and JSON no such numbers.
NUL = "\0"
MOST_OF_ALL = 1e300
# As the decision log keeps it.
LABEL_LENGTH_MAX = 100
KIND_OF_VALUE: dict[type, str] = {int: "a whole number", float: "a number", str: "text"}


def _anything(_: Mapping[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class CheckKind:
    """`problem` looks at all settings together and returns in words what is wrong, or nothing."""

    asks: str
    mode: Mode = "guardrail"
    settings: Mapping[str, Setting] = field(default_factory=dict)
    problem: Callable[[Mapping[str, Any]], str] = _anything
    # It is decided by the e-process, and so takes a share of the rollout's α.
    spends_alpha: bool = False


def _one_bound(settings: Mapping[str, Any]) -> str:
    if ("at_most" in settings) == ("at_least" in settings):
        return "name one bound: at_most or at_least"
    return ""


def _no_metrics(_: Mapping[str, Any]) -> str:
    return "no app keeps metrics here"


SHARE = {"least": 0, "most": 10_000}
KINDS: dict[str, CheckKind] = {
    ERROR_RATE: CheckKind(
        "Does the canary fail for more units than stable, by more than the margin?",
        spends_alpha=True,
    ),
    LATENCY: CheckKind(
        "Are more of the canary's answers slower than stable's usual p50, p95 and p99?",
        spends_alpha=True,
    ),
    UNANSWERED: CheckKind(
        "Do more of the canary's units stay without an answer than stable's, by more than the "
        "margin?",
        spends_alpha=True,
    ),
    SAMPLE_RATIO: CheckKind(
        "Did the canary get the share of traffic that was configured?", mode="signal"
    ),
    SMOKE: CheckKind(
        "Does the target answer, and did no request that named it by its number fail?",
        settings={
            "requests_min": Setting("requests by explicit version at least", int, 0, least=0)
        },
    ),
    ERROR_THRESHOLD: CheckKind(
        "Is the canary's observed error rate at most stable's plus a margin? A plain comparison, "
        "not a test: looked at often it rolls back many healthy versions.",
        settings={
            "margin_bp": Setting("margin in basis points", int, 100, least=1, most=9_999),
            "samples_min": Setting("canary exposures at least", int, 250, least=1),
        },
    ),
    ERROR_OBJECTIVE: CheckKind(
        "Is the canary's error rate within a fixed bound, whatever stable's is?",
        settings={
            "limit_bp": Setting(
                "most errors, in basis points", int, least=1, most=9_999, is_required=True
            )
        },
        spends_alpha=True,
    ),
    LATENCY_OBJECTIVE: CheckKind(
        "Is a quantile of the canary's latency within a fixed bound, whatever stable's is?",
        settings={
            "quantile_permille": Setting("quantile in thousandths", int, 950, least=1, most=999),
            "limit_us": Setting("bound in microseconds", int, least=1, is_required=True),
        },
        spends_alpha=True,
    ),
    SHADOW_AGREEMENT: CheckKind(
        "Do the answers to copied requests agree with stable's?",
        settings={
            "agreement_min_bp": Setting(
                "rows that agree at least", int, 9_900, least=1, most=9_999
            ),
            "rows_min": Setting("compared rows at least", int, 500, least=1),
        },
        spends_alpha=True,
    ),
    SHADOW_ACCURACY: CheckKind(
        "Is the shadow not less accurate than stable on requests that both answered, by more than "
        "the margin? The truth is a metric of outcomes, which may come late.",
        settings={
            "metric": Setting("the metric that tells the truth", str, is_required=True),
            "margin_bp": Setting(
                "accuracy that may be lost, in basis points", int, 100, least=1, most=9_999
            ),
            "scale": Setting(
                "how far a score may be from the metric's value before it counts as entirely "
                "wrong; without it the answer's class must equal the value",
                float,
                least=1e-12,
            ),
        },
        problem=_no_metrics,
        spends_alpha=True,
    ),
    OUTCOME: CheckKind(
        "Is a metric of outcomes not worse than stable's by more than the margin?",
        settings={
            "metric": Setting("the metric's name", str, is_required=True),
            "margin": Setting(
                "margin in the metric's own unit", float, least=1e-12, is_required=True
            ),
            "covariate_s": Setting(
                "seconds before a unit's exposure whose outcomes adjust its own (CUPED)",
                int,
                0,
                least=0,
                most=90 * 86_400,
            ),
        },
        problem=_no_metrics,
        spends_alpha=True,
    ),
    PROMETHEUS: CheckKind(
        "Is the answer to a Prometheus query within a bound?",
        settings={
            "query": Setting("PromQL with one number as its answer", str, is_required=True),
            "at_most": Setting("bound from above", float),
            "at_least": Setting("bound from below", float),
        },
        problem=_one_bound,
    ),
    WEBHOOK: CheckKind(
        "What does a service of yours say of it?",
        settings={"url": Setting("where it is asked by POST", str, is_required=True)},
    ),
}
# What is answered from the traffic that the step sends to the target.
OF_TRAFFIC = {
    ERROR_RATE,
    LATENCY,
    UNANSWERED,
    SAMPLE_RATIO,
    ERROR_THRESHOLD,
    ERROR_OBJECTIVE,
    LATENCY_OBJECTIVE,
    OUTCOME,
}
# Every kind with what it asks.
QUESTIONS = {name: kind.asks for name, kind in KINDS.items()}
# What a step asks unless told otherwise.
DEFAULT_CHECKS = (ERROR_RATE, LATENCY, UNANSWERED, SAMPLE_RATIO)


def let_look(kind: str, problem: Callable[[Mapping[str, Any]], str]) -> None:
    """Let the app that answers a kind of check say which settings it could never answer."""
    KINDS[kind] = replace(KINDS[kind], problem=problem)


def read_check(check: str | CheckDocument) -> CheckDocument:
    """Return the document that a kind alone stands for."""
    return CheckDocument(check=check) if isinstance(check, str) else check


def problem_of_check(check: CheckDocument) -> str:
    """Return in words why no plan may have this check, or nothing."""
    kind = KINDS.get(check.check)
    if kind is None:
        return f"unknown check {check.check!r}. Known are: {', '.join(KINDS)}"
    if len(check.name) > LABEL_LENGTH_MAX or NUL in check.name:
        return f"check {check.check}: its name has at most {LABEL_LENGTH_MAX} characters, none null"
    problems = [
        *_problems_of_settings(kind, check.settings),
        *_problems_of_verdicts(check.on),
        kind.problem(check.settings),
    ]
    found = next(filter(None, problems), "")
    return f"check {check.label}: {found}" if found else ""


def _problems_of_settings(kind: CheckKind, given: Mapping[str, Any]) -> list[str]:
    unknown = [name for name in given if name not in kind.settings]
    known = ", ".join(kind.settings) or "none"
    problems = [f"has no setting {name!r}. It has: {known}" for name in unknown]
    for name, setting in kind.settings.items():
        if name in given:
            problem = setting.problem_of(given[name])
            problems.append(f"{name} {problem}" if problem else "")
        elif setting.is_required:
            problems.append(f"needs {name}: {setting.told}")
    return problems


def _problems_of_verdicts(on: Mapping[str, str]) -> list[str]:
    problems = []
    for verdict, action in on.items():
        if verdict not in UNDECIDED:
            problems.append(f"{verdict!r} cannot be set. Can be: {', '.join(UNDECIDED)}")
        elif action == "roll back" and verdict not in MAY_ROLL_BACK:
            problems.append(f"{verdict} can never roll back: only data can")
    return problems


def require_check(check: CheckDocument, where: str) -> None:
    """Raise Invalid, naming `where`, unless a plan may have this check."""
    problem = problem_of_check(check)
    if problem:
        raise Invalid(f"{where}: {problem}.")
