"""How one endpoint fares: its latency, and whether it is ejected from its clusters for a while.

Ejected is an endpoint that does not answer several times in a row, or that fails far more often
than its siblings. It stays out for a time that doubles with each ejection and is jittered, so that
several do not return at once, and returns when a copy of a live request was answered there.
"""

from __future__ import annotations

from random import uniform

from dataplane.config import Transport as Settings

# The weight of the latest answer in the moving average of latency.
_ALPHA = 0.2
# Idle for so long, its latency is believed half as much: an endpoint that was slow once, such as a
# cold one, gets calls again. One that owes an answer is not idle, and gets no cheaper by owing it.
_FORGET_S = 0.1
# The part of the counts of answers that is left after a second: a window of about ten seconds.
_DECAY = 0.9
# Fewer answers than this prove no rate.
_VOLUME_MIN = 20.0
_BASIS = 10_000
# After so long in service the next ejection is as short as the first.
_FORGIVE_S = 120.0
# A failure to answer in time is the endpoint's when it had so many times its usual latency.
_PATIENCE = 4.0


class Health:
    """Times are monotonic seconds, passed in by the caller."""

    __slots__ = (
        "_answers",
        "_failures",
        "_observed_at",
        "_owing_since",
        "_restored_at",
        "_row",
        "_settings",
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
        # Moving average over answers, errors among them, believed less while it is idle; nought
        # before the first.
        self.latency_s = 0.0
        # The same average, as it was.
        self._usual_s = 0.0
        # When that was last taken or halved.
        self._observed_at = 0.0
        # Since when it has answered nothing, if it owes an answer.
        self._owing_since = 0.0
        # Failures without an answer in between.
        self._row = 0
        # Calls that ended, and those that failed, of the last seconds; they decay.
        self._answers = 0.0
        self._failures = 0.0
        # Out of service.
        self.ejected = False
        # When an ejected endpoint may be tried again.
        self.return_at = 0.0
        # A trial is under way.
        self.trying = False
        # Ejections without long service in between.
        self._streak = 0
        # When it last came back.
        self._restored_at = float("-inf")
        # Ejections since the start.
        self.ejections = 0

    def cost(self, in_flight: int, now: float) -> float:
        """Return what one more call would wait here, for comparison with a sibling."""
        if in_flight:
            # What it owes takes at least as long as it has been silent.
            return (in_flight + 1) * max(self.latency_s, now - self._owing_since)
        if now - self._observed_at > _FORGET_S:
            self.latency_s *= 0.5
            self._observed_at = now
        return self.latency_s

    def owes(self, now: float) -> None:
        """Take note that an idle endpoint got a call."""
        self._owing_since = now

    def answered(self, latency_s: float, now: float) -> None:
        """Count an answer."""
        self._row = 0
        self._answers += 1
        if self.latency_s:
            self.latency_s += (latency_s - self.latency_s) * _ALPHA
            self._usual_s += (latency_s - self._usual_s) * _ALPHA
        else:
            self.latency_s = self._usual_s = latency_s
        self._observed_at = self._owing_since = now

    def failed(self, now: float, took_s: float | None) -> bool:
        """Count a failure; return whether there were too many without an answer in a row.

        `took_s` is the time of a faulty answer, which is an answer nevertheless, None without one.
        """
        if took_s is not None:
            self.answered(took_s, now)
        else:
            self._answers += 1
            self._row += 1
        self._failures += 1
        return self._row >= self._settings.eject_failures

    def was_patient(self, waited_s: float) -> bool:
        """Return whether an answer could be expected after `waited_s`."""
        return waited_s >= _PATIENCE * self._usual_s

    def decay(self) -> None:
        """Let a second pass over the counts."""
        self._answers *= _DECAY
        self._failures *= _DECAY

    def eject(self, now: float) -> float:
        """Go out of service, or stay out for longer; return for how many seconds."""
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
        """Come back into service, with a clean slate."""
        self.ejected = self.trying = False
        self._restored_at = now
        self._row = 0
        self._answers = self._failures = 0.0

    def trial_due(self, now: float) -> bool:
        """Return whether an ejected endpoint is to be tried now; a True uses up the trial."""
        if self.trying or now < self.return_at:
            return False
        self.trying = True
        return True


def outliers(siblings: list[Health], settings: Settings) -> list[Health]:
    """Return those whose share of failures is beyond that of their siblings by the gap."""
    judged = [h for h in siblings if not h.ejected and h._answers >= _VOLUME_MIN]
    answers = sum(h._answers for h in judged)
    failures = sum(h._failures for h in judged)
    found = []
    for health in judged:
        others = answers - health._answers
        if others > 0:
            gap = health._failures / health._answers - (failures - health._failures) / others
            if gap * _BASIS >= settings.eject_gap_bp:
                found.append(health)
    return found
