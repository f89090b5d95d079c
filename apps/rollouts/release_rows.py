"""Rows of the release form: the chosen model and version, and the error of the choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from apps.models.models import ModelVersion, RegisteredModel
from apps.models.selectors import promotable_versions
from apps.rollouts.overrides import Override, signature_difference
from apps.rollouts.selectors.blockers import Obstacle, obstacles_of

ROWS_MIN = 2
ROWS_MAX = 50


@dataclass(frozen=True)
class Row:
    """A row of the form; `error` is shown beside it."""

    name: str = ""
    model: RegisteredModel | None = None
    versions: Sequence[ModelVersion] = ()
    target: ModelVersion | None = None
    error: str = ""


def read_rows(names: Sequence[str], numbers: Sequence[str], *, is_final: bool) -> list[Row]:
    """Return the rows with a chosen model, validated.

    While the choice is not final, an unknown version number becomes the newest version of the
    model: the model of the row has just been changed.
    """
    chosen = list(zip(names, [*numbers, *[""] * len(names)], strict=False))[:ROWS_MAX]
    models = RegisteredModel.objects.select_related("stable__model", "live_split")
    by_name = {model.name: model for model in models.filter(name__in=names)}
    rows: list[Row] = []
    for name, number in chosen:
        if not name:
            continue
        row = _read(name, by_name.get(name), number, is_final=is_final)
        if any(earlier.name == name for earlier in rows):
            row = replace(row, error=f"{name} is chosen twice.")
        rows.append(row)
    return rows


def _read(name: str, model: RegisteredModel | None, number: str, *, is_final: bool) -> Row:
    if model is None:
        return Row(name, error=f"There is no model named {name!r}.")
    versions = list(promotable_versions(model).select_related("model"))
    target = next((each for each in versions if str(each.number) == number), None)
    if target is None and is_final:
        error = f"{name} has no version {number!r} to roll out." if number else "Choose a version."
        return Row(name, model, versions, error=error)
    target = target or (versions[0] if versions else None)
    return Row(name, model, versions, target, _error(model, target))


def _error(model: RegisteredModel, target: ModelVersion | None) -> str:
    """Return why a release cannot move `model` to `target` now; empty when it can."""
    if model.stable is None:
        return f"{model.name} has no stable version yet; roll out its first version separately."
    if target is None:
        return f"{model.name} has no version besides the stable one."
    if hasattr(model, "live_split"):
        return f"{model.name} already has a live rollout or experiment."
    difference = signature_difference(model.stable, target)
    if difference:
        return (
            f"{target} cannot share traffic with stable, as their signatures differ "
            f"({difference[0]}); roll it out separately, before the release."
        )
    return ""


def with_empty(rows: list[Row]) -> list[Row]:
    """Return the rows with at least one empty row, and at least two rows in total."""
    spare = max(1, ROWS_MIN - len(rows)) if len(rows) < ROWS_MAX else 0
    return rows + [Row()] * spare


def joint_obstacles(rows: Iterable[Row], now: datetime) -> list[Obstacle]:
    """Return the obstacles of a start; an override applies to all models."""
    pairs = [(row.model, row.target) for row in rows if row.model and row.target]
    obstacles = [each for model, target in pairs for each in obstacles_of(model, target, now)]
    joint = [
        [each for each in obstacles if each.override == override]
        for override in (Override.QUARANTINE.value, Override.FREEZE.value)
    ]
    return [same[0] if len(same) == 1 else _join(same) for same in joint if same]


def _join(same: list[Obstacle]) -> Obstacle:
    return replace(
        same[0],
        summary=f"{len(same)} models are affected",
        lines=tuple(each.summary for each in same),
    )
