"""Tells which instances serve which table: rollouts wait for them.

A caller with several queries at one time, such as a tick, reads one roster for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Q, QuerySet

from apps.rollouts.epochs import current_epoch
from apps.rollouts.models import Epoch, Instance
from contract.generations import epoch_of, in_words

# What an instance reports when all its models are pinned to stable.
PIN_ALL = "*"


def live_instances(now: datetime) -> QuerySet[Instance]:
    """Return the instances that reported within INSTANCE_LIVE_S and are not stopping."""
    since = now - timedelta(seconds=settings.INSTANCE_LIVE_S)
    return Instance.objects.filter(reported_at__gte=since, is_stopping=False)


def silent_instances(now: datetime) -> QuerySet[Instance]:
    """Return the instances that went silent without a stop report: they may still serve.

    An instance counts as gone after INSTANCE_FORGOTTEN_S; a person may forget it earlier.
    Instances whose last report is older than the epoch belong to the fleet before the restore:
    starting the epoch means that rollouts do not wait for them.
    """
    until = now - timedelta(seconds=settings.INSTANCE_LIVE_S)
    return Instance.objects.filter(
        reported_at__gte=_remembered_since(now, current_epoch()),
        reported_at__lt=until,
        is_stopping=False,
    )


def _remembered_since(now: datetime, epoch: Epoch | None) -> datetime:
    since = now - timedelta(seconds=settings.INSTANCE_FORGOTTEN_S)
    return max(since, epoch.began_at) if epoch is not None else since


@dataclass(frozen=True)
class Roster:
    """The instances that may serve at one moment, and the epoch of this database's tables."""

    now: datetime
    epoch: Epoch | None
    live: tuple[Instance, ...]
    silent: tuple[Instance, ...]

    @property
    def ahead(self) -> list[Instance]:
        """Return the live instances that serve tables newer than those of this database."""
        epoch = self.epoch.number if self.epoch is not None else 0
        return [
            each
            for each in self.live
            if each.serves_unknown and epoch_of(each.applied_generation) >= epoch
        ]

    def unacked(self, generation: int) -> list[tuple[str, str]]:
        """Return pairs of instance name and reason for all that may serve an older table.

        These are the live instances that have not applied `generation`, all silent ones (they may
        have restarted with an old table since their last report), and, right after a restore,
        those that had no time to report yet.
        """
        behind = (each for each in self.live if _is_behind(each, generation))
        return [
            *((each.name, _behind_reason(each, generation)) for each in behind),
            *((each.name, _silence_reason(each, self.now)) for each in self.silent),
            *self._not_reported_yet(),
        ]

    def _not_reported_yet(self) -> list[tuple[str, str]]:
        if self.epoch is None:
            return []
        since_s = (self.now - self.epoch.began_at).total_seconds()
        if since_s >= settings.INSTANCE_LIVE_S:
            return []
        reason = f"may still report: epoch {self.epoch.number} started {since_s:.0f} s ago"
        return [("of the fleet before the restore", reason)]

    def pins_on(self, model_name: str) -> list[str]:
        """Return one sentence for each live instance that has the model pinned to stable.

        No split works there, and only the operator of the instance can unpin the model.
        """
        return [
            f"instance {each.name} has {model_name} pinned to stable by its operator"
            for each in self.live
            if PIN_ALL in each.pinned or model_name in each.pinned
        ]


def read_roster(now: datetime) -> Roster:
    """Return the instances that may serve now."""
    epoch = current_epoch()
    live_since = now - timedelta(seconds=settings.INSTANCE_LIVE_S)
    known = Q(reported_at__gte=_remembered_since(now, epoch)) | Q(reported_at__gte=live_since)
    rows = list(Instance.objects.filter(known, is_stopping=False))
    return Roster(
        now=now,
        epoch=epoch,
        live=tuple(each for each in rows if each.reported_at >= live_since),
        silent=tuple(each for each in rows if each.reported_at < live_since),
    )


def unacked(generation: int, now: datetime) -> list[tuple[str, str]]:
    """Return `Roster.unacked` of the current roster."""
    return read_roster(now).unacked(generation)


def pins_on(model_name: str, now: datetime) -> list[str]:
    """Return `Roster.pins_on` of the current roster."""
    return read_roster(now).pins_on(model_name)


def ahead_reason(instance: Instance, epoch: Epoch | None) -> str:
    """Explain why an instance serves a table of another database, and the fix.

    Either this database was restored, or another control plane has started an epoch.
    """
    served = in_words(instance.applied_generation)
    text = f"serves generation {served}, which this database never published"
    if epoch_of(instance.applied_generation) > (epoch.number if epoch is not None else 0):
        return (
            f"{text}: another control plane has started that epoch, and data planes follow it. "
            "To continue with this control plane, start another epoch with manage.py start_epoch"
        )
    return f"{text}: was it restored? Start an epoch with manage.py start_epoch"


def _is_behind(instance: Instance, generation: int) -> bool:
    return instance.applied_generation < generation or instance.serves_unknown


def _behind_reason(instance: Instance, generation: int) -> str:
    if instance.applied_generation >= generation:
        served = in_words(instance.applied_generation)
        return f"serves generation {served}, which this database never published"
    refused = instance.refused_generation
    if refused is not None and refused >= generation:
        return f"refused generation {in_words(refused)}: {instance.refusal}"
    return f"still serves generation {in_words(instance.applied_generation)}"


def _silence_reason(instance: Instance, now: datetime) -> str:
    silent_s = (now - instance.reported_at).total_seconds()
    served = in_words(instance.applied_generation)
    return f"has been silent for {silent_s:.0f} s (last served generation {served})"
