"""Watches that traffic goes where the tables send it: what was desired against what was seen.

A setting that is accepted and has no effect, or a version at 0 that is asked all the same, must not
stay unseen. Each instance is held to the table that it says it served from.
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

# How far back each look goes; it overlaps the one before, and an alarm is raised once.
LOOK_BACK = timedelta(seconds=60)
# Asked of many instances, every few seconds: so only what chance does not bring.
DIVERGENCE_P_MAX = 1e-6
WHOLE_BP = 10_000


@dataclass(frozen=True)
class Served:
    """Shares of a model's versions under one table, in basis points; what is not here has none."""

    shares_bp: dict[str, int] = field(default_factory=dict)
    # The version of a canary, whose share can be held against what it got.
    canary: str = ""
    # Since when.
    since: datetime | None = None


@dataclass
class Seen:
    """What one instance did with one version of a model under one table."""

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
    seen: Seen
    told: str


def watch_traffic(now: datetime) -> list[TrafficAlarm]:
    """Raise the alarms that the last minute gives cause for; return the new ones.

    A leak pauses the model's rollout: it may not get further before a person has looked.
    """
    return _raise(_find(now), now)


def watch_ends(now: datetime) -> list[TrafficAlarm]:
    """Raise the alarms for requests whose end is missing or came twice; return the new ones.

    They pause the model's rollout too: what a version did to those requests no check has seen.
    """
    findings = (
        Finding(
            TrafficAlarm.Kind.ENDS,
            Seen(
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
    # What a database that was restored has forgotten, nobody can hold against what was seen.
    latest, lost = latest_generation() or inf, lost_generations()
    known = (
        finding
        for finding in findings
        if finding.seen.generation <= latest and finding.seen.generation not in lost
    )
    recorded = [_record(finding, now) for finding in known]
    return [alarm for alarm, is_new in recorded if is_new]


def _find(now: datetime) -> Iterator[Finding]:
    by_place = _seen_lately(now)
    served: dict[tuple[str, int], Served | None] = {}
    for (instance, model_name, generation), seen in by_place.items():
        key = (model_name, generation)
        if key not in served:
            served[key] = served_under(model_name, generation)
        shares = served[key]
        if shares is not None:
            yield from _leaks(seen, shares)
            yield from _divergences(instance, seen, shares)


def _seen_lately(now: datetime) -> dict[tuple[str, str, int], list[Seen]]:
    rows = (
        TelemetryRow.objects.filter(ended_at__gt=now - LOOK_BACK)
        .exclude(variant=EXPLICIT)
        .values("instance", "model_name", "version_number", "generation", "interval_started_at")
        .annotate(all=Sum("requests"), exposed=Sum("assigned"))
    )
    found: dict[tuple[str, str, str, int], Seen] = {}
    for row in rows:
        key = (row["instance"], row["model_name"], row["version_number"], row["generation"])
        seen = found.setdefault(key, Seen(*key, requests=0))
        seen.requests += row["all"]
        seen.exposures[row["interval_started_at"]] = row["exposed"]
    by_place = defaultdict(list)
    for seen in found.values():
        by_place[seen.instance, seen.model_name, seen.generation].append(seen)
    return by_place


def served_under(model_name: str, generation: int) -> Served | None:
    """Return the shares of a model's versions under a table; None when that is not known."""
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
    # Whom an experiment leaves out, stable answers, as it does whatever cannot be answered there.
    shares[change.stable] = max(1, shares.get(change.stable, 0))
    return Served({number: bp for number, bp in shares.items() if bp})


def _leaks(seen: list[Seen], served: Served) -> Iterator[Finding]:
    for each in seen:
        if each.requests and each.version_number not in served.shares_bp:
            told = (
                f"{each.model_name}:{each.version_number} got {each.requests} requests on instance "
                f"{each.instance} under generation {each.generation}, where its share is 0"
            )
            yield Finding(TrafficAlarm.Kind.LEAK, each, told)


def _divergences(instance: str, seen: list[Seen], served: Served) -> Iterator[Finding]:
    """Hold a canary's share on one instance against its fullest interval.

    A unit counts once in an interval and again in the next, so that intervals do not add up. In the
    one in which the share changed those who came before are not counted again, unless they moved.
    """
    if not served.canary:
        return
    canary_bp = served.shares_bp.get(served.canary, 0)
    totals: dict[datetime, list[int]] = defaultdict(lambda: [0, 0])
    for each in seen:
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
        told = f"the split has another effect on instance {instance}: {result.reason}"
        mine = [each for each in seen if each.version_number == served.canary]
        yield Finding(TrafficAlarm.Kind.DIVERGENCE, (mine or seen)[0], told)


@transaction.atomic
def _record(finding: Finding, now: datetime) -> tuple[TrafficAlarm, bool]:
    seen = finding.seen
    alarm, is_new = TrafficAlarm.objects.update_or_create(
        kind=finding.kind,
        instance=seen.instance,
        model_name=seen.model_name,
        version_number=seen.version_number,
        generation=seen.generation,
        defaults={"told": finding.told, "last_at": now},
        create_defaults={"told": finding.told, "last_at": now, "first_at": now},
    )
    if is_new:
        log.error("traffic.%s %s", finding.kind, finding.told)
        record_audit(
            actor=INTERLOCK,
            action=f"traffic.{finding.kind}",
            target=f"{seen.model_name}:{seen.version_number}",
            after={"told": finding.told},
        )
        _tell(finding, now)
        _pause(finding, now)
    return alarm, is_new


EVENTS = {
    TrafficAlarm.Kind.LEAK: "leak.detected",
    TrafficAlarm.Kind.DIVERGENCE: "split.diverged",
    TrafficAlarm.Kind.ENDS: "ends.missing",
}


def _tell(finding: Finding, now: datetime) -> None:
    seen = finding.seen
    model = RegisteredModel.objects.filter(name=seen.model_name).first()
    if model is not None:
        target = f"{seen.model_name}:{seen.version_number}"
        payload = {"target": target, "instance": seen.instance, "reason": finding.told}
        enqueue(event=EVENTS[finding.kind], model=model, payload=payload, now=now)


def _pause(finding: Finding, now: datetime) -> None:
    """Pause the model's rollout; one that does not bake has no step to keep it from."""
    rows = Rollout.objects.select_for_update(of=("self",)).select_related("target__model")
    baking = rows.filter(model__name=finding.seen.model_name, phase=Phase.BAKING)
    for rollout in baking:
        set_phase(rollout, Phase.PAUSED, f"alarm: {finding.told}", INTERLOCK, now)
