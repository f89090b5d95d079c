"""Rules that hold rollouts: freeze windows, the limit, quarantine; and who may change them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.db.models.functions import Coalesce

from apps.models.access import RANK
from apps.models.models import ModelRole, ModelVersion, RegisteredModel, Role
from apps.rollouts.freeze_store import role_to_freeze
from apps.rollouts.freezes import next_start, open_until
from apps.rollouts.models import FreezeWindow, Quarantine, Rollout
from apps.rollouts.states import LIVE_PHASES, Phase

PAST_MAX = 20


@dataclass(frozen=True)
class Allowed:
    """The models on which a person has a role; `everywhere` includes future models."""

    everywhere: bool
    models: QuerySet[RegisteredModel]
    ids: Container[int]

    def on(self, model_id: int | None) -> bool:
        return self.everywhere or (model_id is not None and model_id in self.ids)


def allowed(user: User, role: Role) -> Allowed:
    """Return the models on which `user` has at least `role`."""
    enough = [each for each in Role if RANK[each] >= RANK[role]]
    held = set(
        ModelRole.objects.filter(user=user, role__in=enough).values_list("model_id", flat=True)
    )
    models = RegisteredModel.objects.active().order_by("name")
    everywhere = user.is_active and (user.is_superuser or None in held)
    if not everywhere:
        models = models.filter(pk__in=held - {None}) if user.is_active else models.none()
    return Allowed(everywhere, models, held if user.is_active else ())


@dataclass(frozen=True)
class FreezeView:
    """A freeze window with its end if open, or its next start; both None if it is over."""

    window: FreezeWindow
    until: datetime | None
    next_at: datetime | None
    may_end: bool


@dataclass(frozen=True)
class Freezes:
    open: list[FreezeView]
    upcoming: list[FreezeView]
    past: list[FreezeView]


def read_freezes(user: User, now: datetime) -> Freezes:
    """Return open windows by end, upcoming ones by start, and the last past ones."""
    may = {role: allowed(user, role) for role in (Role.OPERATOR, Role.ADMIN)}
    rows = FreezeWindow.objects.select_related("model").order_by("starts_at", "id")
    over = rows.filter(is_weekly=False, ends_at__lte=now)
    views = [_view(window, may, now) for window in rows.exclude(pk__in=over.values("pk"))]
    past = over.order_by("-ends_at", "-id")[:PAST_MAX]
    return Freezes(
        open=sorted((each for each in views if each.until), key=lambda each: each.until or now),
        upcoming=sorted(
            (each for each in views if each.next_at), key=lambda each: each.next_at or now
        ),
        past=[FreezeView(window, None, None, may_end=False) for window in past],
    )


def _view(window: FreezeWindow, may: dict[Role, Allowed], now: datetime) -> FreezeView:
    until = open_until(window, now)
    may_end = may[role_to_freeze(window.model)].on(window.model_id)
    return FreezeView(window, until, None if until else next_start(window, now), may_end)


def quarantined() -> QuerySet[Quarantine]:
    rows = Quarantine.objects.select_related("version__model", "rollout")
    rows = rows.filter(version__in=ModelVersion.objects.kept())
    return rows.order_by("-at", "version")


@dataclass(frozen=True)
class Places:
    """Numbers of running and of waiting rollouts; a release counts once."""

    under_way: int
    waiting: int


def count_places() -> Places:
    live = Rollout.objects.filter(phase__in=LIVE_PHASES).annotate(
        place=Coalesce("release_id", "id")
    )
    rows = set(live.values_list("place", "phase"))
    under_way = {place for place, phase in rows if phase != Phase.PENDING}
    return Places(len(under_way), len({place for place, _ in rows} - under_way))
