"""Checks of plans, with their settings, for pages."""

from __future__ import annotations

from dataclasses import dataclass

from apps.rollouts.check_kinds import ERROR_THRESHOLD, KINDS, CheckDocument, Setting
from apps.rollouts.thresholds import false_alarm_rate


@dataclass(frozen=True)
class KindView:
    """A kind of check: its question, its mode, and a description of each setting."""

    name: str
    asks: str
    mode: str
    settings: list[tuple[str, str]]
    # The share of healthy versions that it rolls back; None where α bounds it.
    false_alarms: float | None = None


def kinds_of_checks() -> list[KindView]:
    """Return all kinds of checks; with false alarms of the threshold in a typical plan."""
    return [
        KindView(
            name,
            kind.question,
            kind.mode,
            [(key, _setting(setting)) for key, setting in kind.settings.items()],
            false_alarm_rate() if name == ERROR_THRESHOLD else None,
        )
        for name, kind in KINDS.items()
    ]


def _setting(setting: Setting) -> str:
    if setting.is_required:
        return f"{setting.help} (required)"
    default = "" if setting.default is None else f" (default: {setting.default})"
    return f"{setting.help}{default}"


@dataclass(frozen=True)
class PlannedCheckView:
    """A check of a plan step."""

    name: str
    kind: str
    mode: str
    summary: str


def planned_check_view(check: CheckDocument) -> PlannedCheckView:
    """Return a check with a summary of its settings and of the actions of its verdicts."""
    parts = [f"{name} {value}" for name, value in check.settings.items()]
    parts += [f"{verdict}: {action}" for verdict, action in check.on.items()]
    kind = check.check if check.check != check.label else ""
    return PlannedCheckView(check.label, kind, check.effective_mode, ", ".join(parts))
