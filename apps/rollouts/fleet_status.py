"""Who serves from which table, as far as anybody knows: what rollouts wait for.

Whoever has many questions at one moment, as a tick has, reads one roster for all of them.
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
    """Return the instances that reported lately and are not stopping."""
    since = now - timedelta(seconds=settings.INSTANCE_LIVE_S)
    return Instance.objects.filter(reported_at__gte=since, is_stopping=False)


def silent_instances(now: datetime) -> QuerySet[Instance]:
    """Return the instances that went silent without saying that they stop: they may still serve.

    One that is silent for INSTANCE_FORGOTTEN_S is taken for gone; a person may forget it sooner.
    Those that were last heard of before the epoch began are of the fleet before the restore: who
    began the epoch said that nobody waits for them.
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
        """Return the live instances that serve from tables that are newer than this database's."""
        epoch = self.epoch.number if self.epoch is not None else 0
        return [
            each
            for each in self.live
            if each.serves_unknown and epoch_of(each.applied_generation) >= epoch
        ]

    def unacked(self, generation: int) -> list[tuple[str, str]]:
        """Return the instances that may serve from another table than `generation` or a later one.

        With each is why. Those are the live ones that have not applied it, all that are silent, for
        nobody knows what these do, even if their last word was that they had applied it, and, right
        after a restore, whoever has not yet had the time to report.
        """
        behind = (each for each in self.live if _is_behind(each, generation))
        return [
            *((each.name, _why_behind(each, generation)) for each in behind),
            *((each.name, _why_silent(each, self.now)) for each in self.silent),
            *self._unheard(),
        ]

    def _unheard(self) -> list[tuple[str, str]]:
        if self.epoch is None:
            return []
        since_s = (self.now - self.epoch.began_at).total_seconds()
        if since_s >= settings.INSTANCE_LIVE_S:
            return []
        why = f"may yet report, as epoch {self.epoch.number} began {since_s:.0f} s ago"
        return [("of the fleet before the restore", why)]

    def pins_on(self, model_name: str) -> list[str]:
        """Return in words which live instances have the model pinned to stable.

        No split works there, and only who operates such an instance can release it.
        """
        return [
            f"instance {each.name} has {model_name} pinned to stable by its operator"
            for each in self.live
            if PIN_ALL in each.pinned or model_name in each.pinned
        ]


def read_roster(now: datetime) -> Roster:
    """Return who may serve now."""
    epoch = current_epoch()
    live_since = now - timedelta(seconds=settings.INSTANCE_LIVE_S)
    heard_of = Q(reported_at__gte=_remembered_since(now, epoch)) | Q(reported_at__gte=live_since)
    rows = list(Instance.objects.filter(heard_of, is_stopping=False))
    return Roster(
        now=now,
        epoch=epoch,
        live=tuple(each for each in rows if each.reported_at >= live_since),
        silent=tuple(each for each in rows if each.reported_at < live_since),
    )


def unacked(generation: int, now: datetime) -> list[tuple[str, str]]:
    """Return what `Roster.unacked` says now."""
    return read_roster(now).unacked(generation)


def pins_on(model_name: str, now: datetime) -> list[str]:
    """Return what `Roster.pins_on` says now."""
    return read_roster(now).pins_on(model_name)


def why_ahead(instance: Instance, epoch: Epoch | None) -> str:
    """Say what it means that an instance serves from a table of another database, and the way out.

    Either this database was restored, or another control plane has begun an epoch of its own.
    """
    served = in_words(instance.applied_generation)
    text = f"serves generation {served}, which this database never published"
    if epoch_of(instance.applied_generation) > (epoch.number if epoch is not None else 0):
        return (
            f"{text}: another control plane has begun that epoch, and data planes follow it. "
            "If this one shall go on instead, begin another with manage.py start_epoch"
        )
    return f"{text}: was it restored? Begin an epoch with manage.py start_epoch"


def _is_behind(instance: Instance, generation: int) -> bool:
    return instance.applied_generation < generation or instance.serves_unknown


def _why_behind(instance: Instance, generation: int) -> str:
    if instance.applied_generation >= generation:
        served = in_words(instance.applied_generation)
        return f"serves generation {served}, which this database never published"
    refused = instance.refused_generation
    if refused is not None and refused >= generation:
        return f"refused generation {in_words(refused)}: {instance.refusal}"
    return f"still serves generation {in_words(instance.applied_generation)}"


def _why_silent(instance: Instance, now: datetime) -> str:
    silent_s = (now - instance.reported_at).total_seconds()
    served = in_words(instance.applied_generation)
    return f"is silent for {silent_s:.0f} s (last served generation {served})"
