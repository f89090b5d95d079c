"""Gates for persons: who opens one, and what it takes to get past one that is shut.

Every way past a gate is here, whichever door it comes through: approving a step, skipping it,
promoting now, or switching without the plan's steps. It takes the gate's role and somebody else
than who started the rollout; or an operator's override `gate` with a reason, which the log tells.
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
class ShutGate:
    """The gate of step `number` (from 1), which nobody has opened."""

    model: RegisteredModel
    started_by: str
    number: int
    role: Role

    def opens_for(self, actor: Actor) -> bool:
        """Who starts a rollout does not open its gates, whatever role that is."""
        return actor.name != self.started_by and actor_has_role(actor, self.model, self.role)

    @property
    def words(self) -> str:
        return f"the gate of step {self.number} of {self.model.name} ({self.role.value})"


def gate_role(rollout: Rollout) -> Role | None:
    """Return the role that may open the gate of the present step; None when it has none."""
    gates = _gates(rollout, range(rollout.step_index, rollout.step_index + 1))
    return gates[0].role if gates else None


def shut_gates(rollout: Rollout, *, to_the_end: bool = False) -> list[ShutGate]:
    """Return the shut gates of the present step, or of all from it on that a promotion leaves."""
    end = len(rollout.plan_document.get("steps", ())) if to_the_end else rollout.step_index + 1
    gates = _gates(rollout, range(rollout.step_index, end))
    return [gate for gate in gates if gate.number - 1 != rollout.approved_step]


def gates_of_plan(
    plan: PlanDocument, model: RegisteredModel, started_by: str, steps: Iterable[int]
) -> list[ShutGate]:
    """Return the gates for persons of those steps."""
    return [
        ShutGate(model, started_by, index + 1, Role(plan.steps[index].gate_role))
        for index in steps
        if 0 <= index < len(plan.steps) and plan.steps[index].gate == "person"
    ]


def _gates(rollout: Rollout, steps: Iterable[int]) -> list[ShutGate]:
    if not rollout.plan_document:
        return []
    plan = from_json(rollout.plan_document)
    return gates_of_plan(plan, rollout.model, rollout.started_by, steps)


def pass_gates(
    gates: Sequence[ShutGate], actor: Actor, overrides: Collection[str], reason: str
) -> str:
    """Return what the log has to say of the gates that `actor` passes; empty for none.

    Raises:
        Forbidden: one is not for `actor` to open, and is not overridden.
        Invalid: it is overridden without a reason.
    """
    opened = [gate for gate in gates if gate.opens_for(actor)]
    forced = [gate for gate in gates if gate not in opened]
    for gate in forced:
        may_override = actor_has_role(actor, gate.model, Role.OPERATOR)
        if Override.GATE not in overrides or not may_override:
            raise _shut(gate, actor)
    if forced and not reason.strip():
        raise Invalid(f"reason: say why {forced[0].words} is overridden; the log keeps it.")
    said = [f"{each.words} was opened by {actor.name}" for each in opened]
    said += [f"{each.words} was never opened: {actor.name} overrode it" for each in forced]
    return "; ".join(said)


def _shut(gate: ShutGate, actor: Actor) -> Forbidden:
    if actor.name == gate.started_by:
        why = f"{actor.name} started this rollout, so somebody else with that role opens it"
    else:
        why = f"this needs the role {gate.role.value} on model {gate.model.name}"
    return Forbidden(
        f"{gate.words[0].upper()}{gate.words[1:]} is shut: {why}, "
        f"or an operator's override {Override.GATE.value!r} with a reason.",
        override=Override.GATE.value,
    )
