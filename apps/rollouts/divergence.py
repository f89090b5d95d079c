"""Compares the traffic of each version with its share in the routing table, and raises alarms.

It detects settings that are accepted without effect, and versions at 0 % that get requests. Each
instance is compared with the table that it reports it served from.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf

from django.db import transaction
from django.db.models import Sum

from apps.lib.actors import INTERLOCK
from apps.models.audit import record_audit
from apps.models.models import RegisteredModel
from apps.notifications.outbox import enqueue
from apps.rollouts.ends import find_differences
from apps.rollouts.epochs import latest_generation, lost_generations
from apps.rollouts.models import Rollout, ServingChange, TelemetryRow, TrafficAlarm
from apps.rollouts.phases import set_phase
from apps.rollouts.sample_ratio import SplitInterval, judge_sample_ratio
from apps.rollouts.states import Phase
from contract.routing import EXPLICIT

log = logging.getLogger(__name__)

# The period that each run covers; runs overlap, and an alarm is raised once.
LOOK_BACK = timedelta(seconds=60)
# Tested for many instances every few seconds, so that chance must almost never reach it.
DIVERGENCE_P_MAX = 1e-6
WHOLE_BP = 10_000


@dataclass(frozen=True)
class Served:
    """Shares of a model's versions under one table, in basis points; absent versions have none."""

    shares_bp: dict[str, int] = field(default_factory=dict)
    # The canary's version, whose share can be tested.
    canary: str = ""
    # When these shares came into force.
    since: datetime | None = None


@dataclass
class VersionTraffic:
    """The traffic of one version of a model on one instance under one table."""

    instance: str
    model_name: str
    version_number: str
    generation: int
    requests: int
    # Exposures by the beginning of their interval.
    exposures: dict[datetime, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    kind: TrafficAlarm.Kind
    traffic: VersionTraffic
    reason: str


def watch_traffic(now: datetime) -> list[TrafficAlarm]:
    """Raise alarms for the traffic of the last minute; return the new ones.

    An alarm pauses the model's rollout until a person resumes it.
    """
    return _raise(_find(now), now)


def watch_ends(now: datetime) -> list[TrafficAlarm]:
    """Raise alarms for requests whose end is missing or was counted twice; return the new ones.

    They pause the model's rollout too: checks have no data of those requests.
    """
    findings = (
        Finding(
            TrafficAlarm.Kind.ENDS,
            VersionTraffic(
                each.instance,
                each.model_name,
                each.version_number,
                each.generation,
                requests=each.assigned,
            ),
            each.text,
        )
        for each in find_differences(now)
    )
    return _raise(findings, now)


def _raise(findings: Iterable[Finding], now: datetime) -> list[TrafficAlarm]:
    # A restored database has lost the tables of some generations: their traffic is not compared.
    latest, lost = latest_generation() or inf, lost_generations()
    known = (
        finding
        for finding in findings
        if finding.traffic.generation <= latest and finding.traffic.generation not in lost
    )
    recorded = [_record(finding, now) for finding in known]
    return [alarm for alarm, is_new in recorded if is_new]


def _find(now: datetime) -> Iterator[Finding]:
    by_place = _recent_traffic(now)
    served: dict[tuple[str, int], Served | None] = {}
    for (instance, model_name, generation), traffic in by_place.items():
        key = (model_name, generation)
        if key not in served:
            served[key] = served_under(model_name, generation)
        shares = served[key]
        if shares is not None:
            yield from _leaks(traffic, shares)
            yield from _divergences(instance, traffic, shares)


def _recent_traffic(now: datetime) -> dict[tuple[str, str, int], list[VersionTraffic]]:
    rows = (
        TelemetryRow.objects.filter(ended_at__gt=now - LOOK_BACK)
        .exclude(variant=EXPLICIT)
        .values("instance", "model_name", "version_number", "generation", "interval_started_at")
        .annotate(all=Sum("requests"), exposed=Sum("assigned"))
    )
    by_key: dict[tuple[str, str, str, int], VersionTraffic] = {}
    for row in rows:
        key = (row["instance"], row["model_name"], row["version_number"], row["generation"])
        traffic = by_key.setdefault(key, VersionTraffic(*key, requests=0))
        traffic.requests += row["all"]
        traffic.exposures[row["interval_started_at"]] = row["exposed"]
    by_place = defaultdict(list)
    for traffic in by_key.values():
        by_place[traffic.instance, traffic.model_name, traffic.generation].append(traffic)
    return by_place


def served_under(model_name: str, generation: int) -> Served | None:
    """Return the shares of a model's versions under a table; None if they are unknown."""
    change = (
        ServingChange.objects.filter(model_name=model_name, generation__lte=generation)
        .order_by("-id")
        .first()
    )
    if change is None:
        return None
    split = change.split or {}
    shares: dict[str, int] = {}
    if split.get("kind") == "canary":
        weight_bp = split["weight_bp"]
        shares = {split["version"]: weight_bp, change.stable: WHOLE_BP - weight_bp}
        shares = {number: bp for number, bp in shares.items() if bp}
        return Served(shares, split["version"], change.at)
    for variant in split.get("variants", ()):
        included_bp = split["coverage_bp"] * variant["weight_bp"] // WHOLE_BP
        shares[variant["version"]] = shares.get(variant["version"], 0) + included_bp
    # Stable answers the units outside an experiment, and requests that its variants cannot answer.
    shares[change.stable] = max(1, shares.get(change.stable, 0))
    return Served({number: bp for number, bp in shares.items() if bp})


def _leaks(traffic: list[VersionTraffic], served: Served) -> Iterator[Finding]:
    for each in traffic:
        if each.requests and each.version_number not in served.shares_bp:
            reason = (
                f"{each.model_name}:{each.version_number} got {each.requests} requests on instance "
                f"{each.instance} under generation {each.generation}, where its share is 0 %"
            )
            yield Finding(TrafficAlarm.Kind.LEAK, each, reason)


def _divergences(instance: str, traffic: list[VersionTraffic], served: Served) -> Iterator[Finding]:
    """Test a canary's share on one instance in the interval with the most exposures.

    A unit counts once in an interval and again in the next, so that intervals do not add up. The
    interval in which the share changed is left out: its earlier units count again only if the
    change moved them.
    """
    if not served.canary:
        return
    canary_bp = served.shares_bp.get(served.canary, 0)
    totals: dict[datetime, list[int]] = defaultdict(lambda: [0, 0])
    for each in traffic:
        whole = (at for at in each.exposures if served.since is None or at >= served.since)
        for started_at in whole:
            exposed = each.exposures[started_at]
            totals[started_at][each.version_number != served.canary] += exposed
    if not totals or not 0 < canary_bp < WHOLE_BP:
        return
    canary_n, control_n = max(totals.values(), key=sum)
    result = judge_sample_ratio([SplitInterval(canary_n, control_n, canary_bp)])
    p_value = result.evidence.get("p_value")
    if isinstance(p_value, float) and p_value < DIVERGENCE_P_MAX and result.verdict != "pass":
        reason = f"traffic on instance {instance} does not match the split: {result.reason}"
        canary = [each for each in traffic if each.version_number == served.canary]
        yield Finding(TrafficAlarm.Kind.DIVERGENCE, (canary or traffic)[0], reason)


@transaction.atomic
def _record(finding: Finding, now: datetime) -> tuple[TrafficAlarm, bool]:
    traffic = finding.traffic
    alarm, is_new = TrafficAlarm.objects.update_or_create(
        kind=finding.kind,
        instance=traffic.instance,
        model_name=traffic.model_name,
        version_number=traffic.version_number,
        generation=traffic.generation,
        defaults={"reason": finding.reason, "last_at": now},
        create_defaults={"reason": finding.reason, "last_at": now, "first_at": now},
    )
    if is_new:
        log.error("traffic.%s %s", finding.kind, finding.reason)
        record_audit(
            actor=INTERLOCK,
            action=f"traffic.{finding.kind}",
            target=f"{traffic.model_name}:{traffic.version_number}",
            after={"reason": finding.reason},
        )
        _notify(finding, now)
        _pause(finding, now)
    return alarm, is_new


EVENTS = {
    TrafficAlarm.Kind.LEAK: "leak.detected",
    TrafficAlarm.Kind.DIVERGENCE: "split.diverged",
    TrafficAlarm.Kind.ENDS: "ends.missing",
}


def _notify(finding: Finding, now: datetime) -> None:
    traffic = finding.traffic
    model = RegisteredModel.objects.filter(name=traffic.model_name).first()
    if model is not None:
        target = f"{traffic.model_name}:{traffic.version_number}"
        payload = {"target": target, "instance": traffic.instance, "reason": finding.reason}
        enqueue(event=EVENTS[finding.kind], model=model, payload=payload, now=now)


def _pause(finding: Finding, now: datetime) -> None:
    """Pause the model's baking rollout; in any other phase there is no step to stop."""
    rows = Rollout.objects.select_for_update(of=("self",)).select_related("target__model")
    baking = rows.filter(model__name=finding.traffic.model_name, phase=Phase.BAKING)
    for rollout in baking:
        set_phase(rollout, Phase.PAUSED, f"alarm: {finding.reason}", INTERLOCK, now)
