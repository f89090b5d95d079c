"""What pages tell of plans beside their rows: checks with their settings, and false alarms."""

from __future__ import annotations

from dataclasses import dataclass

from apps.rollouts.check_kinds import ERROR_THRESHOLD, KINDS, CheckDocument, Setting
from apps.rollouts.plans import WHOLE_BP, PlanDocument
from apps.rollouts.thresholds import false_alarm_rate

# More looks than that change the figure little, and cost the page time.
LOOKS_MAX = 120


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
            kind.asks,
            kind.mode,
            [(key, _setting(setting)) for key, setting in kind.settings.items()],
            false_alarm_rate() if name == ERROR_THRESHOLD else None,
        )
        for name, kind in KINDS.items()
    ]


def _setting(setting: Setting) -> str:
    if setting.is_required:
        return f"{setting.told} (must be set)"
    default = "" if setting.default is None else f" ({setting.default} unless set)"
    return f"{setting.told}{default}"


def false_alarms_of(plan: PlanDocument) -> float | None:
    """Return the share of healthy versions that the plan's threshold would roll back.

    None when no step has one as a guardrail. Simulated at the usual error rate; of several
    thresholds the strictest is told.
    """
    found = [
        (step, check)
        for step in plan.steps
        for check in step.questions
        if check.check == ERROR_THRESHOLD and check.effective_mode == "guardrail"
    ]
    shares = tuple(step.weight_bp for step, _ in found if 0 < step.weight_bp < WHOLE_BP)
    if not shares:
        return None
    looks = max(
        1,
        *(
            round(step.bake_s * plan.time_scale_permille / 1_000 / plan.interval_s)
            for step, _ in found
        ),
    )
    return false_alarm_rate(
        shares,
        margin_bp=min(int(check.setting("margin_bp")) for _, check in found),
        samples_min=min(int(check.setting("samples_min")) for _, check in found),
        looks_per_step=min(LOOKS_MAX, looks),
    )


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
