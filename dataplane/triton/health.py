"""The health of one endpoint: its latency, and whether it is ejected from its clusters.

An endpoint is ejected if it fails to answer several times in a row, or fails far more often than
its siblings. It stays out for a time that doubles with each ejection and is jittered, so that
several endpoints do not return at once. It returns when a copy of a live request was answered
there.
"""

from __future__ import annotations

from random import uniform

from dataplane.config import Transport as Settings

# The weight of the latest answer in the moving average of latency.
_ALPHA = 0.2
# After this many idle seconds the latency is halved: an endpoint that was slow once, such as a cold
# one, gets calls again. An endpoint with calls in flight is not idle.
_FORGET_S = 0.1
# Factor on the counts of answers per second: a window of about ten seconds.
_DECAY = 0.9
# Minimum answers for a failure rate.
_VOLUME_MIN = 20.0
_BASIS = 10_000
# After this many seconds in service the next ejection is as short as the first.
_FORGIVE_S = 120.0
# A missed deadline counts for the endpoint if it had this many times its usual latency.
_PATIENCE = 4.0


class Health:
    """Times are monotonic seconds, passed in by the caller."""

    __slots__ = (
        "_answers",
        "_failures",
        "_in_a_row",
        "_observed_at",
        "_restored_at",
        "_settings",
        "_silent_since",
        "_streak",
        "_usual_s",
        "ejected",
        "ejections",
        "latency_s",
        "return_at",
        "trying",
    )

    def __init__(self, settings: Settings) -> None:
        # Thresholds and times.
        self._settings = settings
        # Moving average over answers, including errors, halved while idle; 0 before the first.
        self.latency_s = 0.0
        # The same average without halving.
        self._usual_s = 0.0
        # When the latency was last updated or halved.
        self._observed_at = 0.0
        # Since when it has answered nothing, if it has calls in flight.
        self._silent_since = 0.0
        # Consecutive failures to answer.
        self._in_a_row = 0
        # Calls that ended, and those that failed, in the last seconds; they decay.
        self._answers = 0.0
        self._failures = 0.0
        # Whether it is out of service.
        self.ejected = False
        # When an ejected endpoint may be tried again.
        self.return_at = 0.0
        # Whether a trial is in flight.
        self.trying = False
        # Consecutive ejections without long service in between.
        self._streak = 0
        # When it last returned.
        self._restored_at = float("-inf")
        # Ejections since the start.
        self.ejections = 0

    def cost(self, in_flight: int, now: float) -> float:
        """Return the expected wait of one more call, for comparison with a sibling."""
        if in_flight:
            # Calls in flight take at least as long as it has been silent.
            return (in_flight + 1) * max(self.latency_s, now - self._silent_since)
        if now - self._observed_at > _FORGET_S:
            self.latency_s *= 0.5
            self._observed_at = now
        return self.latency_s

    def call_started(self, now: float) -> None:
        """Record that an idle endpoint got a call."""
        self._silent_since = now

    def answered(self, latency_s: float, now: float) -> None:
        self._in_a_row = 0
        self._answers += 1
        if self.latency_s:
            self.latency_s += (latency_s - self.latency_s) * _ALPHA
            self._usual_s += (latency_s - self._usual_s) * _ALPHA
        else:
            self.latency_s = self._usual_s = latency_s
        self._observed_at = self._silent_since = now

    def failed(self, now: float, took_s: float | None) -> bool:
        """Count a failure; return whether there were too many consecutive failures to answer.

        `took_s` is the time of an error response, which is an answer too; None without one.
        """
        if took_s is not None:
            self.answered(took_s, now)
        else:
            self._answers += 1
            self._in_a_row += 1
        self._failures += 1
        return self._in_a_row >= self._settings.eject_failures

    def was_patient(self, waited_s: float) -> bool:
        """Return whether an answer could be expected within `waited_s`."""
        return waited_s >= _PATIENCE * self._usual_s

    def decay(self) -> None:
        """Let the counts decay by one second."""
        self._answers *= _DECAY
        self._failures *= _DECAY

    def eject(self, now: float) -> float:
        """Take it out of service, or keep it out for longer; return the seconds."""
        settings = self._settings
        if now - self._restored_at > _FORGIVE_S and not self.ejected:
            self._streak = 0
        duration_s = min(settings.eject_s * 2.0**self._streak, settings.eject_max_s)
        duration_s *= uniform(0.8, 1.2)  # noqa: S311
        self._streak = min(self._streak + 1, 30)
        self.ejections += not self.ejected
        self.ejected = True
        self.trying = False
        self.return_at = now + duration_s
        return duration_s

    def restore(self, now: float) -> None:
        """Return it to service, with fresh counts."""
        self.ejected = self.trying = False
        self._restored_at = now
        self._in_a_row = 0
        self._answers = self._failures = 0.0

    def trial_due(self, now: float) -> bool:
        """Return whether an ejected endpoint should be tried now; True uses up the trial."""
        if self.trying or now < self.return_at:
            return False
        self.trying = True
        return True


def outliers(siblings: list[Health], settings: Settings) -> list[Health]:
    """Return those whose failure share exceeds that of their siblings by the gap."""
    judged = [h for h in siblings if not h.ejected and h._answers >= _VOLUME_MIN]
    answers = sum(h._answers for h in judged)
    failures = sum(h._failures for h in judged)
    result = []
    for health in judged:
        others = answers - health._answers
        if others > 0:
            gap = health._failures / health._answers - (failures - health._failures) / others
            if gap * _BASIS >= settings.eject_gap_bp:
                result.append(health)
    return result
