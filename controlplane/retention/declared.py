"""The kinds of rows with a retention period; settings, page, API and CLI use this table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Rows that are deleted `days` days after `counted_from`; 0 days: never.

    `least_days` is the minimum of the setting besides 0.
    """

    name: str
    days: int
    counted_from: str
    what: str
    least_days: int = 1

    @property
    def variable(self) -> str:
        return f"INTERLOCK_KEEP_{self.name.upper()}_DAYS"


KINDS = (
    Kind(
        "windows", 14, "the window",
        "windows of telemetry and of shadows, by day; kept from the start of a live rollout",
    ),
    Kind(
        "evaluations", 90, "the end of the rollout",
        "the decision log, by month; the last evaluation of each check of each step is kept",
    ),
    Kind(
        "intervals", 90, "the end of the rollout",
        "frozen intervals that no kept evaluation used",
    ),
    Kind(
        "decisions", 0, "the end of the rollout",
        "the last evaluations too, and their frozen evidence",
    ),
    Kind(
        "exposures", 180, "the end of the experiment",
        "exposures and the values of units; results do not change",
    ),
    Kind(
        "outcomes", 400, "its arrival and its own time",
        "outcomes; kept if a running experiment or a live rollout may count them",
    ),
    Kind(
        "shadow_pairs", 7, "the end of the rollout",
        "responses of stable and shadow to the same request, and exposures of rollouts",
    ),
    Kind("refusals", 400, "the last refusal", "counts of refused outcomes, refused import rows"),
    Kind("sketches", 35, "the hour", "sketches of the units of a model's requests", least_days=8),
    Kind("instances", 90, "the last report", "instances, breaker trips and traffic alarms"),
    Kind("sessions", 1, "their expiry", "login sessions"),
    Kind("audit", 730, "the entry", "the audit log"),
    Kind(
        "batches", 2, "its arrival",
        "keys that detect a batch that is delivered twice", least_days=2,
    ),
)  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS}
