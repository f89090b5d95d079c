"""Observe outcome metrics as guardrails of rollouts: is canary or shadow not worse than stable?

An observation holds the sufficient statistics of a metric with one phase per step
(`rollout_units`). `outcome_judge` judges only that, so the decision log can reproduce the verdict.
`apps.rollouts` does not know outcomes; `register` connects the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from django.db import OperationalError, connection, transaction

from apps.experiments.columns import can_have_covariate
from apps.experiments.models import Metric
from apps.experiments.outcome_judge import judge_outcome, to_json
from apps.experiments.rollout_units import RolloutUnits, read_units, span_of
from apps.experiments.shadow_pairs import read_pairs, to_observation
from apps.rollouts import check_kinds, external_checks, metric_providers
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.models import Rollout
from apps.rollouts.verdicts import JSON

# The rollout's row is locked for this time, and an abort waits for it.
COUNTING_MS = 3_000

Read = TypeVar("Read")

LIMIT_TIME = "SELECT set_config('statement_timeout', %s, true)"


def register() -> None:
    """Register the checks on outcomes, and the validation of their metrics."""
    metric_providers.DATABASE[check_kinds.OUTCOME] = observe_outcome
    external_checks.OBSERVATION_JUDGES[check_kinds.OUTCOME] = judge_outcome
    check_kinds.register_settings_check(check_kinds.OUTCOME, problem_of_metric)
    metric_providers.DATABASE[check_kinds.SHADOW_ACCURACY] = observe_accuracy
    check_kinds.register_settings_check(check_kinds.SHADOW_ACCURACY, problem_of_truth)


def problem_of_metric(settings: Mapping[str, Any]) -> str:
    """Return why a rollout cannot be judged by this metric and margin, or an empty string."""
    name, margin = settings.get("metric"), settings.get("margin")
    if not isinstance(name, str) or isinstance(margin, bool) or not isinstance(margin, int | float):
        return ""
    metric = Metric.objects.filter(name=name).first()
    if metric is None:
        return f"unknown metric {name!r}; expected one of {_known_metrics()}"
    if metric.source != Metric.Source.OUTCOMES:
        return _measured(metric)
    if metric.kind == Metric.Kind.PROPORTION and margin >= 1:
        return f"margin must be below 1 for the proportion {name}; 0.01 is one percentage point"
    if settings.get("covariate_s") and not can_have_covariate(metric):
        return f"covariate_s: only means and ratios are adjusted; {name} is a {metric.kind}"
    return ""


def problem_of_truth(settings: Mapping[str, Any]) -> str:
    """Return why this metric cannot serve as ground truth of answers, or an empty string."""
    name = settings.get("metric")
    if not isinstance(name, str):
        return ""
    metric = Metric.objects.filter(name=name).first()
    if metric is None:
        return f"unknown metric {name!r}; expected one of {_known_metrics()}"
    return "" if metric.source == Metric.Source.OUTCOMES else _measured(metric)


def _measured(metric: Metric) -> str:
    return (
        f"data planes measure {metric.name} ({metric.source}) only in experiments; use the checks "
        "error-rate and latency for a rollout"
    )


def _known_metrics() -> str:
    names = list(Metric.objects.values_list("name", flat=True)[:20])
    return ", ".join(names) or "none"


def observe_outcome(rollout: Rollout, check: CheckDocument, now: datetime) -> dict[str, JSON]:
    """Return the metric's sufficient statistics per step and side, and counts of excluded units."""
    metric = _metric_of(check)
    if isinstance(metric, str):
        return {"problem": metric}
    span = span_of(rollout)
    if span is None:
        return {"metric": metric.name, "nothing": "no step so far had a control"}
    units = _within_limit(
        lambda limit: read_units(
            rollout,
            metric,
            span,
            now,
            covariate_s=check.setting("covariate_s"),
            before_each=limit.renew,
        )
    )
    if units is None:
        return _not_counted(metric)
    return {
        "metric": metric.name,
        "window_s": metric.window_s,
        "until_step": span.steps[-1],
        "data": to_json(units.data),
        **_unit_counts(units),
    }


def observe_accuracy(rollout: Rollout, check: CheckDocument, now: datetime) -> dict[str, JSON]:
    """Return the agreement of stable's and the shadow's answers with the known outcomes."""
    metric = _metric_of(check)
    if isinstance(metric, str):
        return {"problem": metric}
    pairs = _within_limit(
        lambda limit: read_pairs(
            rollout, metric, scale=check.setting("scale"), before_each=limit.renew
        )
    )
    return _not_counted(metric) if pairs is None else to_observation(metric, pairs)


def _metric_of(check: CheckDocument) -> Metric | str:
    """Return the metric that a check names, or why it cannot be used."""
    name = check.setting("metric")
    rows = Metric.objects.select_related("outcomes_of", "divided_by")
    metric = rows.filter(name=name).first()
    if metric is None:
        return f"the metric {name!r} no longer exists"
    return metric if metric.source == Metric.Source.OUTCOMES else _measured(metric)


def _within_limit(read: Callable[[_Limit], Read]) -> Read | None:
    """Return the result of `read`, or None if it takes longer than an abort may wait."""
    try:
        with transaction.atomic(), _Limit() as limit:
            return read(limit)
    except OperationalError as error:
        if not _is_canceled(error):
            raise
        return None


def _not_counted(metric: Metric) -> dict[str, JSON]:
    seconds = COUNTING_MS / 1_000
    return {"problem": f"counting outcomes of {metric.name} took longer than {seconds:g} s"}


def _unit_counts(units: RolloutUnits) -> dict[str, JSON]:
    return {
        "exposed": {"canary": units.canary, "control": units.control},
        "met_both": units.met_both,
        "leaving": units.leaving,
    }


class _Limit:
    """Bounds the total time of all statements, and restores the session's own limit."""

    def __enter__(self) -> _Limit:
        self.ends_at = time.monotonic() + COUNTING_MS / 1_000
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('statement_timeout')")
            self.previous = cursor.fetchone()[0]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error the savepoint restores it.
        if kind is None:
            self._set(self.previous)

    def renew(self) -> None:
        """Limit the next statement to the remaining time."""
        self._set(str(max(1, round(1_000 * (self.ends_at - time.monotonic())))))

    def _set(self, limit: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(LIMIT_TIME, [limit])


def _is_canceled(error: OperationalError) -> bool:
    return getattr(error.__cause__, "sqlstate", "") == "57014"
