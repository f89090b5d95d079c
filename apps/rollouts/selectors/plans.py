"""What pages show of plans beside their rows: checks with their settings."""

from __future__ import annotations

from dataclasses import dataclass

from apps.rollouts.check_kinds import ERROR_THRESHOLD, KINDS, CheckDocument, Setting
from apps.rollouts.thresholds import false_alarm_rate


@dataclass(frozen=True)
class KindView:
    """A kind of check: what it asks, what its failure does, its settings in words."""

    name: str
    asks: str
    mode: str
    settings: list[tuple[str, str]]
    # The share of healthy versions that it would roll back; None where α bounds that.
    false_alarms: float | None = None


def kinds_of_checks() -> list[KindView]:
    """Return every kind of check, with the false alarms of the threshold in a usual plan."""
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
        return f"{setting.help} (must be set)"
    default = "" if setting.default is None else f" ({setting.default} unless set)"
    return f"{setting.help}{default}"


@dataclass(frozen=True)
class AskedView:
    """A check as a plan asks it."""

    name: str
    kind: str
    mode: str
    told: str


def asked_view(check: CheckDocument) -> AskedView:
    """Return a plan's check in words: its settings, and what its undecided verdicts lead to."""
    parts = [f"{name} {value}" for name, value in check.settings.items()]
    parts += [f"{verdict}: {action}" for verdict, action in check.on.items()]
    kind = check.check if check.check != check.label else ""
    return AskedView(check.label, kind, check.effective_mode, ", ".join(parts))
