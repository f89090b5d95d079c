"""Gates: who may open one, and how to pass a closed one.

Every way past a gate uses this module: approving a step, skipping it, promoting now, or switching
without the steps of the plan. It needs the role of the gate and another person than the one who
started the rollout; or an operator's override `gate` with a reason, which is logged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from apps.lib.actors import Actor
from apps.lib.errors import Forbidden, Invalid
from apps.models.access import actor_has_role
from apps.models.models import RegisteredModel, Role
from apps.rollouts.models import Rollout
from apps.rollouts.overrides import Override
from apps.rollouts.plans import PlanDocument, from_json


@dataclass(frozen=True)
class ClosedGate:
    """The gate of step `number` (from 1), which is not approved."""

    model: RegisteredModel
    started_by: str
    number: int
    role: Role

    def opens_for(self, actor: Actor) -> bool:
        """Return whether `actor` may open it: never the person who started the rollout."""
        return actor.name != self.started_by and actor_has_role(actor, self.model, self.role)

    @property
    def words(self) -> str:
        return f"the gate of step {self.number} of {self.model.name} ({self.role.value})"


def gate_role(rollout: Rollout) -> Role | None:
    """Return the role that may open the gate of the current step; None without a gate."""
    gates = _gates(rollout, range(rollout.step_index, rollout.step_index + 1))
    return gates[0].role if gates else None


def closed_gates(rollout: Rollout, *, to_the_end: bool = False) -> list[ClosedGate]:
    """Return the closed gates of the current step, or also of all steps after it."""
    end = len(rollout.plan_document.get("steps", ())) if to_the_end else rollout.step_index + 1
    gates = _gates(rollout, range(rollout.step_index, end))
    return [gate for gate in gates if gate.number - 1 != rollout.approved_step]


def gates_of_plan(
    plan: PlanDocument, model: RegisteredModel, started_by: str, steps: Iterable[int]
) -> list[ClosedGate]:
    """Return the gates of `steps`, indices into the steps of the plan."""
    return [
        ClosedGate(model, started_by, index + 1, Role(plan.steps[index].gate_role))
        for index in steps
        if 0 <= index < len(plan.steps) and plan.steps[index].gate == "person"
    ]


def _gates(rollout: Rollout, steps: Iterable[int]) -> list[ClosedGate]:
    if not rollout.plan_document:
        return []
    plan = from_json(rollout.plan_document)
    return gates_of_plan(plan, rollout.model, rollout.started_by, steps)


def pass_gates(
    gates: Sequence[ClosedGate], actor: Actor, overrides: Collection[str], reason: str
) -> str:
    """Return the log text for the gates that `actor` passes; empty for none.

    Raises:
        Forbidden: `actor` may not open a gate, and it is not overridden.
        Invalid: a gate is overridden without a reason.
    """
    opened = [gate for gate in gates if gate.opens_for(actor)]
    forced = [gate for gate in gates if gate not in opened]
    for gate in forced:
        may_override = actor_has_role(actor, gate.model, Role.OPERATOR)
        if Override.GATE not in overrides or not may_override:
            raise _forbidden(gate, actor)
    if forced and not reason.strip():
        raise Invalid(f"required to override {forced[0].words}; it is logged.", field="reason")
    notes = [f"{each.words} was opened by {actor.name}" for each in opened]
    notes += [f"{each.words} was never opened: {actor.name} overrode it" for each in forced]
    return "; ".join(notes)


def _forbidden(gate: ClosedGate, actor: Actor) -> Forbidden:
    if actor.name == gate.started_by:
        reason = f"{actor.name} started this rollout, so another person with that role must open it"
    else:
        reason = f"this needs the role {gate.role.value} on model {gate.model.name}"
    return Forbidden(
        f"{gate.words[0].upper()}{gate.words[1:]} is closed: {reason}, "
        f"or an operator's override {Override.GATE.value!r} with a reason.",
        override=Override.GATE.value,
    )
