"""How a request can end for the version that it was assigned to: the contract's ends, by number.

An end names what the assigned version did, whoever answered in the end: `shed` says that it had no
room, also where stable then answered. Each assigned request is counted in exactly one of them.
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
# By number: whether it leaves the request without an answer of the version that it was assigned to.
# What no version accepts is the request's own fault, and what the cache answers says nothing.
IS_UNANSWERED = tuple(end not in (ANSWERED, REFUSED, CACHED) for end in range(len(ENDS)))


def end_without_answer(first: int, end: int) -> int:
    """Return the end of a request that stable did not answer either.

    `first` is the end that it would have had with an answer of stable's, and `end` is what became
    of it with stable.
    """
    if first in (SHED, BYPASSED):
        if end == REFUSED:
            # The only version that looked at it does not accept it.
            return REFUSED
        if first == SHED:
            return SHED
        return ABANDONED if end == ABANDONED else FAILED
    if first == REFUSED:
        # Whether it is the request's own fault, stable alone could say. Where it did not, the same
        # request would have stayed without an answer if stable had been asked first.
        return end if end in (REFUSED, ABANDONED, EXPIRED) else FAILED
    return FAILED
