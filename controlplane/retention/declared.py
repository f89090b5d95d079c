"""The kinds of rows that grow, and how many days each is kept: settings, page, API and CLI are made
from this table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Rows that are dropped after so many days, counted from `counted_from`; 0 days: never.

    `least_days` is the least that the setting takes besides 0.
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
        "windows of telemetry and of shadows, by day; none since the start of a live rollout",
    ),
    Kind(
        "evaluations", 90, "the end of the rollout",
        "the decision log, by month, but for the last answer of each check of each step",
    ),
    Kind(
        "intervals", 90, "the end of the rollout",
        "frozen intervals that no evaluation that is kept was made from",
    ),
    Kind(
        "decisions", 0, "the end of the rollout",
        "the last answers as well, and the frozen evidence behind them",
    ),
    Kind(
        "exposures", 180, "the end of the experiment",
        "who met which variant, and the values of units; results stay as they are",
    ),
    Kind(
        "outcomes", 400, "its arrival, and its instant",
        "outcomes; none that a running experiment or a live rollout may count",
    ),
    Kind(
        "shadow_pairs", 7, "the end of the rollout",
        "answers of stable and shadow to the same request, and who met which side of a rollout",
    ),
    Kind("refusals", 400, "the last refusal", "counts of refused outcomes, refused rows of files"),
    Kind("sketches", 35, "the hour", "sketches of which units asked a model", least_days=8),
    Kind("instances", 90, "the last report", "instances, breaker trips and traffic alarms"),
    Kind("sessions", 1, "their expiry", "sessions of people who logged in"),
    Kind("audit", 730, "the entry", "the audit log"),
    Kind(
        "batches", 2, "its arrival",
        "keys by which a batch that is delivered again is known", least_days=2,
    ),
)  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS}
