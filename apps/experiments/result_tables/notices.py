"""Notices about the quality of a result, most severe first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.experiments.result_tables.attribution import attribution_notices

# The sequential test of the sample ratio has little power with few units. A chi-square p-value
# below this gives an early warning.
ONE_LOOK_P_MAX = 1e-4
# A warning is shown above this share of units that crossed over.
LEFT_OUT_MAX = 0.01

# A batch that waits longer than this, in seconds, gives a notice, and then a warning.
WAIT_NOTICE_S = 5.0
WAIT_WARNING_S = 60.0


@dataclass(frozen=True)
class Notice:
    """`tone` is `bad` if no verdict is valid, `warn` if caution is needed, else `busy`."""

    tone: str
    text: str


def notices(
    result: Mapping[str, Any], refresh_error: str = "", *, awaits_final: bool = False
) -> list[Notice]:
    """Return the notices of a result, most severe first."""
    quality = result.get("quality") or {}
    notes: list[Notice] = []
    if refresh_error:
        text = f"The last analysis failed. These numbers are from an earlier one. {refresh_error}"
        notes.append(Notice("bad", text))
    notes += _sample_ratio_notices(result.get("sample_ratio") or {})
    for name, count in (quality.get("unknown_variants") or {}).items():
        text = (
            f"{count:,} units were exposed to '{name}', which is not a variant of this experiment."
        )
        notes.append(Notice("bad", text))
    if awaits_final:
        text = "The final analysis is pending. These numbers may change once more."
        notes.append(Notice("busy", text))
    attributed = [Notice(tone, text) for tone, text in attribution_notices(result)]
    notes += [notice for notice in attributed if notice.tone == "bad"]
    mild = [notice for notice in attributed if notice.tone != "bad"]
    return (
        notes
        + _metric_notices(result)
        + backlog_notices(result)
        + mild
        + _exclusion_notices(quality)
    )


def _metric_notices(result: Mapping[str, Any]) -> list[Notice]:
    """Return the notices of the metrics. Results of older releases have none."""
    return [
        Notice("warn", text)
        for metric in result.get("metrics") or ()
        for text in metric.get("notices") or ()
    ]


def backlog_notices(result: Mapping[str, Any]) -> list[Notice]:
    """Return notices on outcomes that are not in the numbers yet, or never will be.

    Results of older releases have no `backlog`.
    """
    if "backlog" not in result:
        return []
    backlog = result["backlog"]
    if backlog is None:
        text = "The ingestion backlog is unknown: Redis did not answer."
        return [Notice("warn", text)]
    notes = []
    if backlog["entries"] and backlog["oldest_s"] >= WAIT_NOTICE_S:
        batches = (
            "1 batch waits" if backlog["entries"] == 1 else f"{backlog['entries']:,} batches wait"
        )
        text = (
            f"{batches} for ingestion, the oldest for {backlog['oldest_s']:,.0f} s. These numbers"
        )
        tone = "warn" if backlog["oldest_s"] >= WAIT_WARNING_S else "busy"
        notes.append(Notice(tone, f"{text} do not include them yet."))
    if backlog["dead"]:
        text = f"{backlog['dead']:,} batches could not be stored (all models). Their outcomes"
        notes.append(
            Notice("warn", f"{text} are not in these numbers; they are kept in interlock:dead.")
        )
    return notes


def _sample_ratio_notices(ratio: Mapping[str, Any]) -> list[Notice]:
    if ratio.get("state") == "srm":
        text = (
            f"Sample ratio mismatch: {ratio['reason']}. The variants did not get their configured"
        )
        return [Notice("bad", f"{text} shares of units. Find the cause before you use any number.")]
    if ratio.get("state") == "unexpected-units":
        return [Notice("bad", f"Unexpected units: {ratio['reason']}.")]
    p_value = ratio.get("p_value")
    if p_value is not None and p_value < ONE_LOOK_P_MAX:
        text = f"Possible sample ratio mismatch (p = {p_value:.1e} at this look)"
        reason = ratio.get("reason") or _counts(ratio)
        return [Notice("warn", f"{text}: {reason}." if reason else f"{text}.")]
    return []


def _counts(ratio: Mapping[str, Any]) -> str:
    observed = ratio.get("observed")
    counts = observed.values() if isinstance(observed, Mapping) else observed or ()
    return " : ".join(f"{count:,}" for count in counts)


def _exclusion_notices(quality: Mapping[str, Any]) -> list[Notice]:
    notes: list[Notice] = []
    exposed, crossed = quality.get("exposed", 0), quality.get("crossed_over", 0)
    moved, waiting = quality.get("moved", 0), quality.get("waiting", 0)
    total = exposed + crossed + moved
    if crossed:
        tone = "warn" if crossed > LEFT_OUT_MAX * total else "busy"
        text = f"{crossed:,} units were exposed to more than one variant and are excluded."
        notes.append(Notice(tone, text))
    if moved:
        text = (
            f"{moved:,} units are excluded because a change of weights reassigned them to another "
        )
        text += "variant, or because they were exposed while the change was taking effect."
        notes.append(Notice("busy", text))
    if waiting:
        text = f"{waiting:,} of {exposed:,} units have no outcome of the primary metric yet, or "
        notes.append(Notice("busy", f"{text}their window is still open. They do not count yet."))
    refused = quality.get("refused_outcomes") or {}
    if refused:
        counts = "; ".join(f"{reason}: {count:,}" for reason, count in refused.items())
        notes.append(Notice("warn", f"Rejected outcomes, in total: {counts}."))
    return notes
