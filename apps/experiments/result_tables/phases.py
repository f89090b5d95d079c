"""The weight phases of a result: start, weights and exposed units of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apps.experiments.result_tables.wording import NOTHING, Scale


@dataclass(frozen=True)
class PhaseCell:
    """One variant in one phase: its weight in basis points, and its units that count."""

    arm: str
    weight_bp: int | None
    units: int


@dataclass(frozen=True)
class PhaseRow:
    """`at` is the start of the phase; `cells` are in the order of the variants."""

    at: datetime | None
    cells: tuple[PhaseCell, ...]


def phase_rows(result: Mapping[str, Any], variants: Sequence[str]) -> list[PhaseRow]:
    """Return a row for each phase of a result; none if the weights never changed."""
    phases = result.get("phases") or ()
    if len(phases) < 2:
        return []
    return [
        PhaseRow(
            datetime.fromisoformat(phase["at"]) if phase.get("at") else None,
            tuple(
                PhaseCell(
                    name,
                    (phase.get("weights_bp") or {}).get(name),
                    (phase.get("units") or {}).get(name, 0),
                )
                for name in variants
            ),
        )
        for phase in phases
    ]


def describe_basis(compared: Mapping[str, Any], scale: Scale) -> str:
    """Return which units were compared; empty if all were compared together."""
    basis, left_out = compared.get("basis", "all"), compared.get("left_out") or 0
    if basis == "present-phase":
        return (
            f"units since the last change of weights; {left_out:,} earlier units are not compared"
        )
    if basis != "phases":
        return ""
    value, control = scale.level(compared.get("value")), scale.level(compared.get("control_value"))
    phases = compared.get("phases", 0)
    text = "no phase has enough units of both variants"
    if phases and NOTHING not in (value, control):
        text = f"{value} vs {control} within {phases} phase{'s' if phases > 1 else ''}"
    return f"{text}; {left_out:,} units left out" if left_out else text
