"""Measures how stable's errors varied over time before a rollout, once, and keeps the result.

If stable's errors come in bursts, a canary that starts in one looks bad. The rollout's own data
shows that late; stable's previous hours (an A/A test) show it from the first evaluation on.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
from django.db import connection

from apps.rollouts.dispersion import FIELDS, History, Pace
from apps.rollouts.models import Rollout
from contract.routing import BASELINE, STABLE

SPAN = timedelta(hours=2)
STORED = ("intervals", *FIELDS)

PACE = """
    SELECT sum(units + anonymous), sum(unit_errors + anonymous_errors)
    FROM rollouts_telemetryrow
    WHERE model_name = %s AND version_number = %s AND variant IN (%s, %s)
      AND ended_at > %s AND interval_started_at >= %s AND interval_started_at < %s
    GROUP BY floor(extract(epoch FROM interval_started_at) / %s)
    ORDER BY floor(extract(epoch FROM interval_started_at) / %s)
"""


def error_dispersion_before(rollout: Rollout, interval_s: int) -> History | None:
    """Return how stable's errors varied over time before the rollout; None without enough data.

    The first call reads it and stores it in the rollout's row, so that later evaluations see the
    same.
    """
    if not rollout.stable_spread:
        rollout.stable_spread = to_json(_read(rollout, interval_s))
        rollout.save(update_fields=["stable_spread"])
    return from_json(rollout.stable_spread)


def _read(rollout: Rollout, interval_s: int) -> History | None:
    if rollout.baseline is None:
        return None
    since, until = rollout.started_at - SPAN, rollout.started_at
    version = str(rollout.baseline.number)
    with connection.cursor() as cursor:
        cursor.execute(
            PACE,
            [
                *(rollout.model.name, version, STABLE, BASELINE),
                *(since, since, until, interval_s, interval_s),
            ],
        )
        rows = np.array(cursor.fetchall(), dtype=np.float64).reshape(-1, 2)
    if not len(rows):
        return None
    return History.usual(Pace(rows[:, 0], rows[:, 1]))


def to_json(history: History | None) -> dict[str, Any]:
    """Return the JSON that rollouts and evaluations store."""
    if history is None:
        return {"intervals": 0}
    return {name: float(getattr(history, name)) for name in STORED}


def from_json(stored: dict[str, Any]) -> History | None:
    """Return what `to_json` stored; None where there was not enough data."""
    if not stored or not stored["intervals"]:
        return None
    arrays = [np.array(stored[name], dtype=np.float64) for name in FIELDS]
    return History(stored["intervals"], *arrays)
