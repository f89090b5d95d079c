"""The budget of retries and hedges: a share of the calls of the last ten seconds.

Retries and hedges help while few calls fail. If most calls fail, each retry only adds to the load
that makes them fail: with the budget, the calls of any ten seconds are at most (1 + share) × those
requested, plus the floor.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 10
BASIS = 10_000


class Budget:
    """The budget of one cluster; `roll` is called once a second."""

    __slots__ = ("_calls_before", "_floor", "_past", "_share_bp", "_spent_before", "calls", "spent")

    def __init__(self, share_bp: int, floor: int) -> None:
        # The share of calls that may be repeated, in basis points.
        self._share_bp = share_bp
        # The number of calls that may be repeated however few calls there are.
        self._floor = floor
        # Calls and repetitions of the past seconds of the window, oldest first.
        self._past: deque[tuple[int, int]] = deque()
        # Their sums.
        self._calls_before = 0
        self._spent_before = 0
        # Calls of this second; incremented from outside.
        self.calls = 0
        # Repetitions of this second.
        self.spent = 0

    @property
    def at_rest(self) -> bool:
        """Whether there were no calls within the window."""
        return not (self.calls or self._calls_before or self.spent or self._spent_before)

    def take(self) -> bool:
        """Spend one repetition; return False if the budget is spent."""
        calls = self._calls_before + self.calls
        spent = self._spent_before + self.spent + 1
        if (spent - self._floor) * BASIS > calls * self._share_bp:
            return False
        self.spent += 1
        return True

    def roll(self) -> None:
        """Start a new second, and drop the one that leaves the window."""
        self._past.append((self.calls, self.spent))
        self._calls_before += self.calls
        self._spent_before += self.spent
        self.calls = self.spent = 0
        if len(self._past) >= WINDOW_S:
            calls, spent = self._past.popleft()
            self._calls_before -= calls
            self._spent_before -= spent
