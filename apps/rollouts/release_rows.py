"""Which version of which model a person chose for a release, and what is wrong with the choice."""

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
    """A row of the form as it is shown again; `error` is said beside it."""

    name: str = ""
    model: RegisteredModel | None = None
    versions: Sequence[ModelVersion] = ()
    target: ModelVersion | None = None
    error: str = ""


def read_rows(names: Sequence[str], numbers: Sequence[str], *, is_final: bool) -> list[Row]:
    """Return the rows in which a model was chosen, each looked at.

    While the choice is not final, a version that the model does not have becomes its newest one:
    then the model of the row was changed just now.
    """
    chosen = list(zip(names, [*numbers, *[""] * len(names)], strict=False))[:ROWS_MAX]
    models = RegisteredModel.objects.select_related("stable__model", "live_split")
    found = {model.name: model for model in models.filter(name__in=names)}
    rows: list[Row] = []
    for name, number in chosen:
        if not name:
            continue
        row = _read(name, found.get(name), number, is_final=is_final)
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
        told = f"{name} has no version {number!r} to move to." if number else "Choose a version."
        return Row(name, model, versions, error=told)
    target = target or (versions[0] if versions else None)
    return Row(name, model, versions, target, _fault(model, target))


def _fault(model: RegisteredModel, target: ModelVersion | None) -> str:
    """Return why a release cannot move `model` to `target` now, or nothing."""
    if model.stable is None:
        return f"{model.name} has no stable version yet: roll out its first one by itself."
    if target is None:
        return f"{model.name} has no version but the stable one."
    if hasattr(model, "live_split"):
        return f"{model.name} has a live rollout or experiment: a model has one at a time."
    difference = signature_difference(model.stable, target)
    if difference:
        return (
            f"{target} cannot be moved in steps, as it takes or gives other tensors than stable "
            f"({difference[0]}): roll it out by itself, before the release."
        )
    return ""


def with_empty(rows: list[Row]) -> list[Row]:
    """Return the rows with one to fill in, so that more can be chosen; at least two in all."""
    spare = max(1, ROWS_MIN - len(rows)) if len(rows) < ROWS_MAX else 0
    return rows + [Row()] * spare


def joint_obstacles(rows: Iterable[Row], now: datetime) -> list[Obstacle]:
    """Return what a start would have to override: an override holds for all models at once."""
    pairs = [(row.model, row.target) for row in rows if row.model and row.target]
    found = [each for model, target in pairs for each in obstacles_of(model, target, now)]
    joint = [
        [each for each in found if each.override == override]
        for override in (Override.QUARANTINE.value, Override.FREEZE.value)
    ]
    return [same[0] if len(same) == 1 else _join(same) for same in joint if same]


def _join(same: list[Obstacle]) -> Obstacle:
    return replace(
        same[0],
        told=f"{len(same)} of the models are concerned",
        lines=tuple(each.told for each in same),
    )
