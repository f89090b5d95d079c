"""Why a rollout is as it is: a headline for everyone, and a detail with the statistics."""

from __future__ import annotations

from dataclasses import dataclass

HEADLINE_MAX = 90


@dataclass(frozen=True)
class Reason:
    """`headline` has at most HEADLINE_MAX characters and no statistics; `detail` is complete."""

    headline: str
    detail: str

    def __str__(self) -> str:
        return self.detail


def reason_of(reason: str | Reason) -> Reason:
    """Return the reason; of a text the first clause is the headline."""
    if isinstance(reason, Reason):
        return reason
    return Reason(headline_of(reason), reason)


def headline_of(text: str) -> str:
    """Return the first clause of `text` as a headline, cut between words."""
    line = " ".join(text.split()).split("; ")[0].rstrip(".")
    if len(line) > HEADLINE_MAX:
        line = f"{line[: HEADLINE_MAX - 1].rsplit(' ', 1)[0]}…"
    # A name stays as it is written: digits:2.
    starts_with_word = line.partition(" ")[0].rstrip(":,").isalpha()
    return f"{line[:1].upper()}{line[1:]}" if starts_with_word else line


# What a function takes that stores a reason.
ReasonLike = str | Reason


def detail_of(headline: str, reason: str) -> str:
    """Return the reason where it says more than its headline, else nothing."""
    return "" if headline.lower() == reason.rstrip(".").lower() else reason
