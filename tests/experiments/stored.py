"""Stored results (schema 2) with any number of arms and metrics, for tests of pages."""

from __future__ import annotations

from typing import Any

GUARDED = {"state": "not-worse", "bound": -0.004, "margin": 0.01, "deteriorated": False}


def reading(method: str, low: float | None, high: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "method": method,
        "state": "ok",
        "reason": "",
        "alpha": 0.025,
        "is_significant": False,
        "p_value": 0.0123,
        "low": low,
        "high": high,
        "uplift_state": "ok",
        "uplift_low": None if low is None else 0.01,
        "uplift_high": None if high is None else 0.2,
    } | changes


def comparison(arm: str, **changes: Any) -> dict[str, Any]:
    return {
        "arm": arm,
        "state": "ok",
        "reason": "",
        "outcome": "better",
        "test": "pooled-z",
        "difference": 0.14,
        "standard_error": 0.02,
        "uplift": 0.175,
        "uplift_state": "ok",
        "deciding": "sequential",
        "is_significant": True,
        "sequential": reading("sequential", 0.07, 0.21),
        "fixed": reading("fixed-horizon", 0.1, 0.18),
        "p_holm": 0.02,
        "q_bh": 0.015,
        "bayes": {
            "chance_to_beat": 0.9995,
            "expected_loss": 1e-5,
            "prior": "Beta(1, 1) on each rate",
        },
        "mann_whitney_p": None,
        "variance_reduction": None,
        "non_inferiority": None,
    } | changes


def arm(name: str, *, is_control: bool = False, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "is_control": is_control,
        "weight_bp": 5_000,
        "exposed": 520,
        "n": 500,
        "mean": 0.8,
        "sd": 0.4,
    } | changes


def metric(
    name: str = "accuracy", names: tuple[str, ...] = ("weak", "strong"), **changes: Any
) -> dict[str, Any]:
    control, *treatments = names
    return {
        "name": name,
        "role": "primary",
        "kind": "proportion",
        "direction": "increase",
        "quantile": None,
        "margin": None,
        "state": "ok",
        "reason": "",
        "verdict": f"{treatments[0]} is better than {control}: 94% against 80%.",
        "winner": treatments[0],
        "is_significant": True,
        "arms": [arm(control, is_control=True), *(arm(t, mean=0.94) for t in treatments)],
        "comparisons": [comparison(t) for t in treatments],
        "distribution": {"edges": [0.5], "counts": {each: [100, 400] for each in names}},
    } | changes


def guardrail(name: str, names: tuple[str, ...] = ("weak", "strong"), **changes: Any) -> Any:
    compared = [comparison(t, outcome="undecided", non_inferiority=GUARDED) for t in names[1:]]
    fields = {"role": "guardrail", "margin": 0.01, "comparisons": compared} | changes
    return metric(name, names, **fields)


def stored_result(*metrics: dict[str, Any], **changes: Any) -> dict[str, Any]:
    shown = metrics or (metric(),)
    first = shown[0]
    return {
        "schema": 2,
        "phase": "running",
        "alpha": 0.05,
        "planned_units": 1_000,
        "state": "ok",
        "reason": "",
        "verdict": first["verdict"],
        "is_significant": first["is_significant"],
        "winner": first["winner"],
        "primary": first["name"],
        "sample_ratio": {"state": "ok", "reason": "", "observed": [], "p_value": 0.6},
        "metrics": list(shown),
        "breakdowns": [],
        "quality": {
            "exposed": 1_040,
            "crossed_over": 0,
            "moved": 0,
            "waiting": 0,
            "unknown_variants": {},
            "refused_outcomes": {},
            "holdout": 0,
        },
        "exposures": {"at_ms": [1, 2, 3], "units": {"weak": [2, 0, 3], "strong": [0, 1, 0]}},
        "holdout": {"units": 0, "means": {}},
    } | changes


NOTHING_SEEN = stored_result(
    metric(
        state="not-enough-data",
        reason="each arm needs at least 2 units (0 and 0)",
        verdict="Not enough data: each arm needs at least 2 units (0 and 0).",
        winner=None,
        is_significant=False,
        arms=[
            arm("weak", is_control=True, exposed=0, n=0, mean=None, sd=None),
            arm("strong", exposed=0, n=0, mean=None, sd=None),
        ],
        comparisons=[
            comparison(
                "strong",
                state="not-enough-data",
                reason="each arm needs at least 2 units (0 and 0)",
                outcome="undecided",
                difference=None,
                standard_error=None,
                uplift=None,
                is_significant=False,
                sequential=reading("sequential", None, None, p_value=None),
                fixed=reading("fixed-horizon", None, None, p_value=None),
                p_holm=None,
                q_bh=None,
                bayes=None,
            )
        ],
        distribution={"edges": [], "counts": {}},
    ),
    exposures={"at_ms": [], "units": {}},
)


def many(arms: int = 10, metrics: int = 20) -> dict[str, Any]:
    """Return a result with `arms` arms and `metrics` metrics; the last five are guardrails."""
    names = tuple(f"v{i}" for i in range(arms))
    first = metric("m0", names)
    middle = [metric(f"m{i}", names, role="secondary") for i in range(1, max(1, metrics - 5))]
    last = [guardrail(f"g{i}", names) for i in range(min(5, metrics - 1))]
    units = {name: [3, 4] for name in names}
    return stored_result(first, *middle, *last, exposures={"at_ms": [1, 2], "units": units})
