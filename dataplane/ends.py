"""The ends of requests for the version that they were assigned to, as numbers.

An end describes what the assigned version did, even if another version answered: `shed` means that
the version had no capacity, also if stable then answered. Each assigned request is counted in
exactly one end.
"""

from __future__ import annotations

from contract.messages import Ends

ENDS = Ends.__struct_fields__
(
    ANSWERED,
    FAILED,
    FELL_BACK,
    EXPIRED,
    SHED,
    ABANDONED,
    REFUSED,
    CACHED,
    BYPASSED,
) = map(ENDS.index, (
    "answered", "failed", "fell_back", "expired", "shed", "abandoned", "refused", "cached",
    "bypassed",
))  # fmt: skip
# By number: whether the assigned version left the request unanswered. A request that no version
# accepts is at fault itself, and an answer of the cache says nothing about the version.
IS_UNANSWERED = tuple(end not in (ANSWERED, REFUSED, CACHED) for end in range(len(ENDS)))


def end_without_answer(first: int, end: int) -> int:
    """Return the end of a request that stable did not answer either.

    `first` is the end that it would have with an answer of stable, and `end` is how it ended at
    stable.
    """
    if first in (SHED, BYPASSED):
        if end == REFUSED:
            # The only version that tried it does not accept it.
            return REFUSED
        if first == SHED:
            return SHED
        return ABANDONED if end == ABANDONED else FAILED
    if first == REFUSED:
        # Only stable can tell whether the request itself is at fault. If stable did not, the same
        # request would have stayed unanswered if it had gone to stable first.
        return end if end in (REFUSED, ABANDONED, EXPIRED) else FAILED
    return FAILED
