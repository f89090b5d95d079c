"""The kinds of checks: the question of each, the effect of its failure, its settings and bounds.

A plan names a check by its kind alone, or as a document with settings. A plan with an unknown kind,
setting or value is refused when it is saved, so that a typo never disables a check.
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
# The action for a verdict that is neither pass nor fail, once the bake time is over.
OnVerdict = Literal["hold", "pause", "roll back"]
UNDECIDED = (
    Verdict.INCONCLUSIVE,
    Verdict.INSUFFICIENT_SAMPLE,
    Verdict.NO_DATA,
    Verdict.PROVIDER_ERROR,
)
# Only a verdict that rests on enough data may roll back.
MAY_ROLL_BACK = {Verdict.INCONCLUSIVE}


class CheckDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One check of a step.

    `mode` defaults to the mode of the kind. `on` maps a verdict that is neither pass nor fail to an
    action; by default the step holds. `name` distinguishes two checks of one kind.
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
        return self.settings.get(name, self.kind.settings[name].default)


@dataclass(frozen=True)
class Setting:
    """One setting of a kind of check: its help text, type and bounds."""

    help: str
    type: type[int] | type[float] | type[str]
    default: JSON = None
    least: float | None = None
    most: float | None = None
    is_required: bool = False

    def problem_of(self, value: object) -> str:
        """Describe what is wrong with `value`; empty if it is valid."""
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


# PostgreSQL cannot store such text, nor JSON such numbers.
NUL = "\0"
MOST_OF_ALL = 1e300
# The length of the decision log's column.
LABEL_LENGTH_MAX = 100
KIND_OF_VALUE: dict[type, str] = {int: "a whole number", float: "a number", str: "text"}


def _accept_all(_: Mapping[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class CheckKind:
    """`problem` checks all settings together and describes what is wrong; empty if valid."""

    question: str
    mode: Mode = "guardrail"
    settings: Mapping[str, Setting] = field(default_factory=dict)
    problem: Callable[[Mapping[str, Any]], str] = _accept_all
    # The e-process decides it, so that it takes a share of the rollout's α.
    spends_alpha: bool = False


def _one_bound(settings: Mapping[str, Any]) -> str:
    if ("at_most" in settings) == ("at_least" in settings):
        return "exactly one of at_most and at_least is required"
    return ""


def _no_metrics(_: Mapping[str, Any]) -> str:
    return "no installed app provides metrics"


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
        "Does the target answer, and did every request that named its number succeed?",
        settings={
            "requests_min": Setting(
                "minimum number of requests that name the version", int, 0, least=0
            )
        },
    ),
    ERROR_THRESHOLD: CheckKind(
        "Is the canary's observed error rate at most stable's plus a margin? A plain comparison, "
        "not a test: evaluated often, it rolls back many healthy versions.",
        settings={
            "margin_bp": Setting("margin in basis points", int, 100, least=1, most=9_999),
            "samples_min": Setting("minimum exposures of each version", int, 250, least=1),
        },
    ),
    ERROR_OBJECTIVE: CheckKind(
        "Is the canary's error rate within a fixed bound, whatever stable's is?",
        settings={
            "limit_bp": Setting(
                "highest allowed error rate, in basis points",
                int,
                least=1,
                most=9_999,
                is_required=True,
            )
        },
        spends_alpha=True,
    ),
    LATENCY_OBJECTIVE: CheckKind(
        "Is a quantile of the canary's latency within a fixed bound, whatever stable's is?",
        settings={
            "quantile_permille": Setting(
                "quantile in thousandths (950 is p95)", int, 950, least=1, most=999
            ),
            "limit_us": Setting("latency limit in microseconds", int, least=1, is_required=True),
        },
        spends_alpha=True,
    ),
    SHADOW_AGREEMENT: CheckKind(
        "Do the answers to copied requests agree with stable's?",
        settings={
            "agreement_min_bp": Setting(
                "minimum share of agreeing rows, in basis points", int, 9_900, least=1, most=9_999
            ),
            "rows_min": Setting("minimum number of compared rows", int, 500, least=1),
        },
        spends_alpha=True,
    ),
    SHADOW_ACCURACY: CheckKind(
        "Is the shadow not less accurate than stable on requests that both answered, by more than "
        "the margin? The true values are outcomes of a metric, which may arrive late.",
        settings={
            "metric": Setting("name of the metric with the true values", str, is_required=True),
            "margin_bp": Setting(
                "allowed loss of accuracy, in basis points", int, 100, least=1, most=9_999
            ),
            "scale": Setting(
                "distance between score and true value that counts as entirely wrong; without "
                "it, the predicted class must equal the value",
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
            "metric": Setting("name of the metric", str, is_required=True),
            "margin": Setting(
                "margin in the unit of the metric", float, least=1e-12, is_required=True
            ),
            "covariate_s": Setting(
                "seconds before a unit's exposure in which its outcomes are the covariate (CUPED)",
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
        "Is the result of a Prometheus query within a bound?",
        settings={
            "query": Setting("PromQL query that returns one number", str, is_required=True),
            "at_most": Setting("upper bound", float),
            "at_least": Setting("lower bound", float),
        },
        problem=_one_bound,
    ),
    WEBHOOK: CheckKind(
        "Does a service of yours approve the step?",
        settings={"url": Setting("address that receives the POST request", str, is_required=True)},
    ),
}
# The kinds that are judged from the traffic that the step sends to the target.
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
# The question of every kind.
QUESTIONS = {name: kind.question for name, kind in KINDS.items()}
# The checks of a step that names none.
DEFAULT_CHECKS = (ERROR_RATE, LATENCY, UNANSWERED, SAMPLE_RATIO)


def register_settings_check(kind: str, problem: Callable[[Mapping[str, Any]], str]) -> None:
    """Add a check of settings to a kind, by the app that judges the kind."""
    KINDS[kind] = replace(KINDS[kind], problem=problem)


def read_check(check: str | CheckDocument) -> CheckDocument:
    """Return the check as a document, with default settings for a kind alone."""
    return CheckDocument(check=check) if isinstance(check, str) else check


def problem_of_check(check: CheckDocument) -> str:
    """Describe why no plan may contain this check; empty if it is valid."""
    kind = KINDS.get(check.check)
    if kind is None:
        return f"unknown kind {check.check!r}; expected one of {', '.join(KINDS)}"
    if len(check.name) > LABEL_LENGTH_MAX or NUL in check.name:
        return (
            f"check {check.check}: name must have at most {LABEL_LENGTH_MAX} characters and no "
            "null character"
        )
    problems = [
        *_problems_of_settings(kind, check.settings),
        *_problems_of_verdicts(check.on),
        kind.problem(check.settings),
    ]
    first = next(filter(None, problems), "")
    return f"check {check.label}: {first}" if first else ""


def _problems_of_settings(kind: CheckKind, settings: Mapping[str, Any]) -> list[str]:
    known = ", ".join(kind.settings)
    expected = f"expected one of {known}" if known else "this kind has no settings"
    unknown = [name for name in settings if name not in kind.settings]
    problems = [f"unknown setting {name!r}; {expected}" for name in unknown]
    for name, setting in kind.settings.items():
        if name in settings:
            problem = setting.problem_of(settings[name])
            problems.append(f"{name} {problem}" if problem else "")
        elif setting.is_required:
            problems.append(f"{name} is required: {setting.help}")
    return problems


def _problems_of_verdicts(on: Mapping[str, str]) -> list[str]:
    problems = []
    for verdict, action in on.items():
        if verdict not in UNDECIDED:
            problems.append(
                f"on: {verdict!r} cannot be set; expected one of {', '.join(UNDECIDED)}"
            )
        elif action == "roll back" and verdict not in MAY_ROLL_BACK:
            problems.append(f"on: {verdict} cannot roll back; only inconclusive can")
    return problems


def require_check(check: CheckDocument, where: str) -> None:
    """Raise Invalid, whose message starts with `where`, unless the check is valid."""
    problem = problem_of_check(check)
    if problem:
        raise Invalid(f"{problem}.", field=where)
