"""How many calls may be sent a second time: a share of the calls of the last ten seconds.

Retries and hedges help while few calls fail. When most do, each would only add to the load that
makes them fail: with the budget, whatever happens, the calls of any ten seconds are at most
(1 + share) × those asked for, plus the floor.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 10
BASIS = 10_000


class Budget:
    """`roll` is called once a second."""

    __slots__ = ("_calls_before", "_floor", "_past", "_share_bp", "_spent_before", "calls", "spent")

    def __init__(self, share_bp: int, floor: int) -> None:
        # The share of calls that may be repeated, in basis points.
        self._share_bp = share_bp
        # So many may be repeated however few calls there are.
        self._floor = floor
        # Calls and repetitions of the past seconds of the window, oldest first.
        self._past: deque[tuple[int, int]] = deque()
        # Their sums.
        self._calls_before = 0
        self._spent_before = 0
        # Calls of this second; bumped from outside.
        self.calls = 0
        # Repetitions of this second.
        self.spent = 0

    @property
    def at_rest(self) -> bool:
        """True when nothing happened within the window."""
        return not (self.calls or self._calls_before or self.spent or self._spent_before)

    def take(self) -> bool:
        """Spend one repetition, or return False."""
        calls = self._calls_before + self.calls
        spent = self._spent_before + self.spent + 1
        if (spent - self._floor) * BASIS > calls * self._share_bp:
            return False
        self.spent += 1
        return True

    def roll(self) -> None:
        """Begin a new second, forget the one that leaves the window."""
        self._past.append((self.calls, self.spent))
        self._calls_before += self.calls
        self._spent_before += self.spent
        self.calls = self.spent = 0
        if len(self._past) >= WINDOW_S:
            calls, spent = self._past.popleft()
            self._calls_before -= calls
            self._spent_before -= spent
