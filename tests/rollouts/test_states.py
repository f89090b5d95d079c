"""The tables of states, walked whole."""

from __future__ import annotations

from itertools import product

import pytest

from apps.experiments.states import EXPERIMENT_TRANSITIONS
from apps.lib.transitions import IllegalTransition, Transitions
from apps.models.states import DEPLOYMENT_TRANSITIONS, MODEL_TRANSITIONS, VERSION_TRANSITIONS
from apps.rollouts.states import LIVE_PHASES, PHASE_TRANSITIONS, Phase

TABLES = (
    PHASE_TRANSITIONS,
    DEPLOYMENT_TRANSITIONS,
    EXPERIMENT_TRANSITIONS,
    MODEL_TRANSITIONS,
    VERSION_TRANSITIONS,
)
LEGAL_PHASES = {
    ("pending", "preparing"),
    ("pending", "rolling_back"),
    ("preparing", "baking"),
    ("preparing", "promoting"),
    ("preparing", "rolling_back"),
    ("preparing", "failed"),
    ("baking", "baking"),
    ("baking", "paused"),
    ("baking", "promoting"),
    ("baking", "rolling_back"),
    ("paused", "baking"),
    ("paused", "promoting"),
    ("paused", "rolling_back"),
    ("promoting", "succeeded"),
    ("promoting", "rolling_back"),
    ("rolling_back", "rolled_back"),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_names_every_state(table: Transitions[Phase]) -> None:
    states = type(next(iter(table.table)))
    assert set(table.table) == set(states)


@pytest.mark.parametrize(("old", "new"), list(product(Phase, Phase)))
def test_only_the_legal_transitions_of_a_rollout_are_allowed(old: Phase, new: Phase) -> None:
    if (old.value, new.value) in LEGAL_PHASES:
        PHASE_TRANSITIONS.check("it", old, new)
    else:
        with pytest.raises(IllegalTransition):
            PHASE_TRANSITIONS.check("it", old, new)


@pytest.mark.parametrize("phase", sorted(LIVE_PHASES - {Phase.ROLLING_BACK}))
def test_every_live_phase_can_roll_back(phase: Phase) -> None:
    assert PHASE_TRANSITIONS.allows(Phase(phase), Phase.ROLLING_BACK)
