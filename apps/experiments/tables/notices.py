"""What to know before believing a result, the gravest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.experiments.tables.attribution import attribution_notices

# The check of shares that holds at every look is slow to speak while units are few; a chi-square
# below this is worth a warning long before.
ONE_LOOK_P_MAX = 1e-4
# Above this share of units that were left out a reader is warned.
LEFT_OUT_MAX = 0.01


# Batches that wait for longer than this are worth a word, and a warning.
WAIT_TOLD_S = 5.0
WAIT_WARNED_S = 60.0


@dataclass(frozen=True)
class Notice:
    """`tone` is `bad` where no verdict may be read, `warn` where one must be careful."""

    tone: str
    text: str


def notices(
    result: Mapping[str, Any], refresh_error: str = "", *, awaits_final: bool = False
) -> list[Notice]:
    """Return what a reader must know first, the gravest first."""
    quality = result.get("quality") or {}
    found: list[Notice] = []
    if refresh_error:
        text = f"The last analysis failed; these numbers are older. {refresh_error}"
        found.append(Notice("bad", text))
    found += _shares(result.get("sample_ratio") or {})
    for name, count in (quality.get("unknown_variants") or {}).items():
        text = f"{count:,} units met a variant {name}, which this experiment does not have."
        found.append(Notice("bad", text))
    if awaits_final:
        text = "The final result is being made: these numbers may change once more, then never."
        found.append(Notice("busy", text))
    attributed = [Notice(tone, text) for tone, text in attribution_notices(result)]
    found += [notice for notice in attributed if notice.tone == "bad"]
    mild = [notice for notice in attributed if notice.tone != "bad"]
    return found + _of_metrics(result) + behind(result) + mild + _left_out(quality)


def _of_metrics(result: Mapping[str, Any]) -> list[Notice]:
    """Return what metrics' numbers lean on. Results of before had none."""
    return [
        Notice("warn", text)
        for metric in result.get("metrics") or ()
        for text in metric.get("notices") or ()
    ]


def behind(result: Mapping[str, Any]) -> list[Notice]:
    """Return what was sent and is in no number. Results of before had no `backlog`."""
    if "backlog" not in result:
        return []
    backlog = result["backlog"]
    if backlog is None:
        text = "How much waits to be taken in is not known: Redis did not answer."
        return [Notice("warn", text)]
    found = []
    if backlog["entries"] and backlog["oldest_s"] >= WAIT_TOLD_S:
        batches = (
            "1 batch waits" if backlog["entries"] == 1 else f"{backlog['entries']:,} batches wait"
        )
        text = (
            f"{batches} to be taken in, the oldest for {backlog['oldest_s']:,.0f} s: these numbers"
        )
        tone = "warn" if backlog["oldest_s"] >= WAIT_WARNED_S else "busy"
        found.append(Notice(tone, f"{text} are so far behind."))
    if backlog["dead"]:
        text = (
            f"{backlog['dead']:,} batches could not be stored, of whatever model; what they carried"
        )
        found.append(Notice("warn", f"{text} is in no number. They are kept in interlock:dead."))
    return found


def _shares(ratio: Mapping[str, Any]) -> list[Notice]:
    if ratio.get("state") == "srm":
        text = f"Sample-ratio mismatch: {ratio['reason']}. Variants did not get the shares of units"
        return [
            Notice("bad", f"{text} that they should; find the cause before reading any number.")
        ]
    if ratio.get("state") == "unexpected-units":
        return [Notice("bad", f"Units where none should be: {ratio['reason']}.")]
    p_value = ratio.get("p_value")
    if p_value is not None and p_value < ONE_LOOK_P_MAX:
        text = f"The shares of units look off (p = {p_value:.1e} at this look)"
        told = ratio.get("reason") or _counts(ratio)
        return [Notice("warn", f"{text}: {told}." if told else f"{text}.")]
    return []


def _counts(ratio: Mapping[str, Any]) -> str:
    observed = ratio.get("observed")
    counts = observed.values() if isinstance(observed, Mapping) else observed or ()
    return " : ".join(f"{count:,}" for count in counts)


def _left_out(quality: Mapping[str, Any]) -> list[Notice]:
    found: list[Notice] = []
    exposed, crossed = quality.get("exposed", 0), quality.get("crossed_over", 0)
    moved, waiting = quality.get("moved", 0), quality.get("waiting", 0)
    everybody = exposed + crossed + moved
    if crossed:
        tone = "warn" if crossed > LEFT_OUT_MAX * everybody else "busy"
        text = f"{crossed:,} units met more than one variant and are left out."
        found.append(Notice(tone, text))
    if moved:
        text = f"{moved:,} units are left out because a change of weights gave them to another "
        text += "variant, whether they came back or not, or was being taken in when they came."
        found.append(Notice("busy", text))
    if waiting:
        text = f"{waiting:,} of {exposed:,} units have no outcome of the primary metric yet, or "
        found.append(Notice("busy", f"{text}their window is still open; they are in no mean."))
    refused = quality.get("refused_outcomes") or {}
    if refused:
        told = "; ".join(f"{reason}: {count:,}" for reason, count in refused.items())
        found.append(Notice("warn", f"Outcomes that were refused, ever: {told}."))
    return found
