"""A rollout among people, ticks, instances, traffic and crashes, in any order: what must hold.

Hypothesis draws the order. After each step the latest table and the rows are held against the
promises of the design; a broken one is shown with the shortest history that breaks it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.db import connection, transaction
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from apps.lib.clock import database_now
from apps.lib.errors import InterlockError
from apps.models.models import Deployment, LiveSplit
from apps.models.states import DeploymentState
from apps.rollouts import services
from apps.rollouts.fleet_status import unacked
from apps.rollouts.models import BreakerTripRecord, Instance, PublishedTable, Rollout
from apps.rollouts.overrides import Override
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.publication import latest_table
from apps.rollouts.states import LIVE_PHASES, Phase
from apps.rollouts.tick import tick_one
from contract.routing import CanarySplit, ModelRoute, check, decode
from tests.rollouts.factories import ANNA, make_instance, make_model, send

INSTANCES = ("i-1", "i-2")
VERSIONS = (1, 2, 3)
ACTIONS: tuple[Callable[..., Any], ...] = (
    services.pause_rollout,
    services.resume_rollout,
    services.skip_step,
    services.approve_step,
    services.promote_now,
)
STEPS = (
    StepDocument(weight_bp=0, shadow_bp=1_000, bake_s=0, checks=()),
    StepDocument(weight_bp=500, bake_s=0, checks=()),
    StepDocument(weight_bp=5_000, bake_s=60, checks=("error-rate",), gate="person"),
    StepDocument(weight_bp=10_000, bake_s=0, checks=()),
)


class Crash(Exception):
    """The worker dies: what it wrote in its transaction is gone."""


class DieAt:
    """Raises at the n-th statement that writes, as if the process were killed there."""

    def __init__(self, write: int) -> None:
        self.left = write

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            if self.left == 0:
                raise Crash
            self.left -= 1
        return execute(sql, params, many, context)


class RolloutMachine(RuleBasedStateMachine):
    """One model, two instances, and whatever may happen to them."""

    @initialize(ticks=st.integers(0, 12))
    def begin(self, ticks: int) -> None:
        """A rollout is on its way: how far, Hypothesis draws."""
        self.undo = transaction.atomic()
        self.undo.__enter__()
        plan = PlanDocument(
            name="mixed", steps=STEPS, holdback_bp=100, final_bake_s=1, time_scale_permille=1
        )
        save_plan(document=plan, is_default=True, actor=ANNA)
        self.model = make_model(versions=len(VERSIONS))
        for name in INSTANCES:
            make_instance(name, applied_generation=0)
        # (split id, weight) of the table before, and who was aborted.
        self.last: tuple[str, int] = ("", 0)
        self.aborted: set[str] = set()
        # The revision at which an abort was last tried out.
        self.tried = -1
        self.start(2, override=False)
        self.go_on(ticks)

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.undo.__exit__(None, None, None)

    # --- what happens ---

    def live(self) -> Rollout | None:
        return Rollout.objects.filter(phase__in=LIVE_PHASES).first()

    @rule(number=st.sampled_from(VERSIONS), override=st.booleans())
    def start(self, number: int, override: bool) -> None:
        target = self.model.versions.get(number=number)
        more = {"overrides": [Override.QUARANTINE.value] if override else []}
        self._try(services.start_rollout, model=self.model, target=target, **more)

    @rule(action=st.sampled_from(ACTIONS), is_stale=st.booleans())
    def act(self, action: Callable[..., Any], is_stale: bool) -> None:
        rollout = Rollout.objects.order_by("-started_at").first()
        if rollout is not None:
            revision = rollout.revision - is_stale
            self._try(action, rollout=rollout, revision=max(0, revision))

    @rule(dice=st.integers(1, 6))
    def abort(self, dice: int) -> None:
        rollout = self.live()
        if rollout is None or dice < 6:
            return
        services.abort_rollout(rollout=rollout, actor=ANNA, now=database_now())
        self.aborted.add(str(rollout.pk))

    @rule(to=st.sampled_from((None, *VERSIONS)), dice=st.integers(1, 6))
    def roll_back_model(self, to: int | None, dice: int) -> None:
        if dice < 5:
            return
        version = self.model.versions.get(number=to) if to else None
        self._try(services.rollback_model, model=self.model, to=version)

    def _try(self, service: Callable[..., Any], **arguments: Any) -> None:
        with suppress(InterlockError):
            service(actor=ANNA, now=database_now(), **arguments)

    @rule(ticks=st.integers(1, 4))
    def go_on(self, ticks: int) -> None:
        """All goes well for a while: who is live acks, what is loaded is warm, people approve."""
        Deployment.objects.update(state=DeploymentState.READY)
        for _ in range(ticks):
            for name in INSTANCES:
                self.report(name, "ack")
            rollout = self.live()
            if rollout is None:
                return
            self._try(services.approve_step, rollout=rollout)
            self.traffic(0)
            self.tick(None)

    @rule(write=st.one_of(st.none(), st.integers(0, 12)))
    def tick(self, write: int | None) -> None:
        """One tick with the checks due; with `write` the worker dies at that write."""
        rollout = self.live()
        if rollout is None:
            return
        Rollout.objects.filter(next_check_at__isnull=False).update(next_check_at=database_now())
        if write is None:
            self._tick_and_watch(rollout)
            return
        before = self._state()
        try:
            with transaction.atomic(), connection.execute_wrapper(DieAt(write)):
                tick_one(rollout.pk)
        except Crash:
            assert self._state() == before

    def _tick_and_watch(self, rollout: Rollout) -> None:
        """A step that a tick takes was acked by every instance that may serve, and is warm."""
        behind = unacked(rollout.generation or 0, database_now())
        ready = Deployment.objects.filter(version=rollout.target, state=DeploymentState.READY)
        is_warm, index = ready.exists(), rollout.step_index
        tick_one(rollout.pk)
        rollout.refresh_from_db()
        if rollout.step_index > index >= 0 or rollout.phase == Phase.SUCCEEDED:
            assert not behind
        if rollout.step_index > index == -1:
            assert is_warm

    def _state(self) -> list[Any]:
        tables = (Rollout, PublishedTable, LiveSplit)
        return [list(table.objects.order_by("pk").values()) for table in tables]

    @rule(name=st.sampled_from(INSTANCES), how=st.sampled_from(("ack", "nack", "silent", "pin")))
    def report(self, name: str, how: str) -> None:
        latest, now = latest_table(), database_now()
        generation = latest.generation if latest else 0
        changes: dict[str, Any] = {
            "ack": {"applied_generation": generation, "refused_generation": None, "pinned": []},
            "nack": {"refused_generation": generation, "refusal": "no"},
            "silent": {"reported_at": now - timedelta(seconds=60)},
            "pin": {"pinned": ["*"]},
        }[how]
        Instance.objects.filter(name=name).update(**{"reported_at": now, **changes})

    @rule(errors=st.sampled_from((0, 0, 40)))
    def traffic(self, errors: int) -> None:
        rollout = self.live()
        if rollout is None or rollout.weight_bp in (0, 10_000) or not rollout.generation:
            return
        at = database_now() - timedelta(seconds=15)
        more = {"split": str(rollout.pk), "generation": rollout.generation, "at": at}
        more["interval_started_at"] = at
        canary = {"variant": "canary", "units": 400, "unit_errors": errors}
        send("digits", rollout.target.number, **canary, **more)
        send("digits", self._stable(), units=4_000, **more)

    def _stable(self) -> int:
        self.model.refresh_from_db()
        return self.model.stable.number if self.model.stable else 0

    @rule(dice=st.integers(1, 6))
    def trip(self, dice: int) -> None:
        rollout = self.live()
        if rollout is not None and rollout.generation and dice == 6:
            now = database_now()
            BreakerTripRecord.objects.get_or_create(
                instance="i-1",
                boot="b",
                model_name="digits",
                version_number=str(rollout.target.number),
                generation=rollout.generation,
                defaults={"count": 1, "first_at": now - timedelta(seconds=9), "last_at": now},
            )

    @rule(number=st.sampled_from(VERSIONS), is_warm=st.booleans())
    def deployment(self, number: int, is_warm: bool) -> None:
        state = DeploymentState.READY if is_warm else DeploymentState.LOADING
        Deployment.objects.filter(version__number=number).update(state=state)

    # --- what must hold ---

    def route(self) -> ModelRoute | None:
        latest = latest_table()
        return decode(bytes(latest.document)).models.get("digits") if latest else None

    @precondition(lambda self: latest_table() is not None)
    @invariant()
    def the_table_contradicts_nothing(self) -> None:
        latest = latest_table()
        assert latest is not None
        check(decode(bytes(latest.document)))
        self.model.refresh_from_db()
        route = self.route()
        assert route is not None
        if self.model.stable is not None and route.stable is not None:
            assert route.stable == str(self.model.stable.number)

    @invariant()
    def at_most_one_split_is_live(self) -> None:
        live = Rollout.objects.filter(phase__in=LIVE_PHASES).count()
        assert live <= 1
        assert LiveSplit.objects.count() <= live

    @invariant()
    def shares_rise_only_where_all_is_warm_and_acked(self) -> None:
        route = self.route()
        split = route.split if route else None
        now = (split.id, split.weight_bp) if isinstance(split, CanarySplit) else ("", 0)
        if now[0] == self.last[0]:
            # Buckets are [0, weight): who was in stays in as long as the weight does not fall.
            assert now[1] >= self.last[1]
        if now[1] and now != self.last:
            assert isinstance(split, CanarySplit)
            assert split.version in (route.versions if route else {})
        self.last = now

    @invariant()
    def what_was_aborted_gets_nothing_any_more(self) -> None:
        route = self.route()
        if route is not None and isinstance(route.split, CanarySplit):
            assert route.split.id not in self.aborted
        for pk in self.aborted:
            phase = Rollout.objects.get(pk=pk).phase
            assert phase in {Phase.ROLLING_BACK, Phase.ROLLED_BACK}

    @invariant()
    def every_live_state_can_be_aborted(self) -> None:
        rollout = self.live()
        if rollout is None:
            return
        if rollout.revision == self.tried:
            return
        self.tried = rollout.revision
        with transaction.atomic():
            services.abort_rollout(rollout=rollout, actor=ANNA, now=database_now())
            route = self.route()
            assert route is None or route.split is None
            transaction.set_rollback(True)

    @invariant()
    def the_row_says_what_the_table_says(self) -> None:
        rollout, route = self.live(), self.route()
        if rollout is None or route is None:
            return
        if rollout.phase in {Phase.BAKING, Phase.PAUSED} and isinstance(route.split, CanarySplit):
            assert route.split.weight_bp == rollout.weight_bp
            assert route.split.version == str(rollout.target.number)
        if rollout.phase in {Phase.ROLLING_BACK, Phase.PROMOTING}:
            assert route.split is None
