"""The weight phases of a result: when each began, which weights held, and who was exposed in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apps.experiments.tables.wording import NOTHING, Scale


@dataclass(frozen=True)
class PhaseCell:
    """One variant in one phase: its weight in basis points, and the units that count."""

    arm: str
    weight_bp: int | None
    units: int


@dataclass(frozen=True)
class PhaseRow:
    """`at` is when the weights began to hold; `cells` are in the order of the variants."""

    at: datetime | None
    cells: tuple[PhaseCell, ...]


def phase_rows(result: Mapping[str, Any], variants: Sequence[str]) -> list[PhaseRow]:
    """Return a row for each phase of a result; none where the weights never changed."""
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


def basis_of(compared: Mapping[str, Any], scale: Scale) -> str:
    """Return which units a comparison is of, where it is not all of them with each other."""
    basis, left_out = compared.get("basis", "all"), compared.get("left_out") or 0
    if basis == "present-phase":
        return f"units since the last change of weights; {left_out:,} before are not compared"
    if basis != "phases":
        return ""
    value, control = scale.level(compared.get("value")), scale.level(compared.get("control_value"))
    phases = compared.get("phases", 0)
    told = "no phase has enough units of both"
    if phases and NOTHING not in (value, control):
        told = f"{value} vs {control} inside {phases} phase{'s' if phases > 1 else ''}"
    return f"{told}; {left_out:,} units left out" if left_out else told
