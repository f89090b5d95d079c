"""Requests that wait for one version: which of them make up the next batch.

They wait in lines, one for each key: only requests of one line may share a batch. Within and
between lines the priority classes share the rows that leave by weight (start-time fair queueing):
each class has a tag that grows by rows / weight with what it sends, and the class with the lowest
tag goes next. A class that comes back from a rest starts at the tag of those that did not rest, so
rest earns nothing and costs nothing.

The bound: a class that waits with a request of r rows lets the others send at most
r × (their weights / its own) rows and two more batches before that request leaves the queue's head.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections import deque
from typing import Protocol

from dataplane.codec import InferRequest
from dataplane.reply import Output
from dataplane.triton import TritonError

HIGH, NORMAL, LOW = 0, 1, 2
CLASSES = (HIGH, NORMAL, LOW)
WEIGHTS = (16, 4, 1)
PRIORITIES = {"high": HIGH, "normal": NORMAL, "low": LOW}
# The deadline of a job whose client hung up: it is dropped as soon as it is met in the queue.
ABANDONED = float("-inf")
# A timer of the loop is no more exact than this.
_TICK_S = 0.001


class Job(Protocol):
    """A request that waits for its rows; exactly one of the two methods is called, once.

    `deadline` and `submitted_at` are on `time.monotonic`. `hurried` says that little time is left:
    such a request travels alone and ahead of the others. `priority` is one of the classes.
    """

    request: InferRequest
    deadline: float
    submitted_at: float
    hurried: bool
    priority: int

    def answered(self, outputs: list[Output], start: int, dispatched_at: float) -> None: ...

    def failed(self, error: TritonError) -> None: ...


class Batch:
    """Jobs that leave together."""

    __slots__ = (
        "ended",
        "expired",
        "jobs",
        "late",
        "latest",
        "pressed",
        "rows",
        "soonest",
        "timer",
    )

    def __init__(self) -> None:
        # In the order of their rows in the batch.
        self.jobs: list[Job] = []
        # The rows of all of them.
        self.rows = 0
        # The first deadline among them.
        self.soonest = float("inf")
        # The last one.
        self.latest = 0.0
        # Jobs whose deadline passed before they could leave; they are not in the batch.
        self.late: list[Job] = []
        # Others stayed behind, so that the batch is as large as it could be.
        self.pressed = False
        # Jobs whose own deadline passed while the batch was under way; their rows stay in it.
        self.expired: list[Job] = []
        # Fires at the first deadline, where deadlines lie far apart.
        self.timer: TimerHandle | None = None
        # Its end was reported.
        self.ended = False

    def add(self, job: Job, now: float) -> None:
        """Put `job` into the batch, or among the late."""
        deadline = job.deadline
        if deadline <= now:
            self.late.append(job)
            return
        self.jobs.append(job)
        self.rows += job.request.rows
        if deadline < self.soonest:
            self.soonest = deadline
        if deadline > self.latest:
            self.latest = deadline


class Line:
    """The waiting requests of one key, a queue for each class."""

    __slots__ = ("due", "jobs", "key", "rows")

    def __init__(self, key: object) -> None:
        # What its requests have in common.
        self.key = key
        # By class, each in the order of arrival.
        self.jobs: tuple[deque[Job], ...] = tuple(deque() for _ in CLASSES)
        # The rows of all of them.
        self.rows = 0
        # A batch of it may leave as soon as there is a place: it is full, or waited long enough.
        self.due = False

    def oldest(self) -> float:
        """Return when its oldest request came."""
        return min(jobs[0].submitted_at for jobs in self.jobs if jobs)


class FairQueue:
    """All lines of one version."""

    __slots__ = ("_delay_s", "_due", "_lines", "_rows_max", "_tags", "_virtual", "rows", "waiting")

    def __init__(self, rows_max: int, delay_s: float) -> None:
        # Rows of a full batch.
        self._rows_max = rows_max
        # How long a line that is not full may wait for more.
        self._delay_s = delay_s
        # Lines with waiting requests by key, the one that began to wait first in front.
        self._lines: dict[object, Line] = {}
        # By class: the due lines with requests of the class, in the order of their turns.
        self._due: tuple[dict[Line, None], ...] = tuple({} for _ in CLASSES)
        # By class: what it has sent so far, in rows over weight.
        self._tags = [0.0 for _ in CLASSES]
        # The tag of the class that went last, where one that rested begins.
        self._virtual = 0.0
        # Rows that wait.
        self.rows = 0
        # The same by class.
        self.waiting = [0 for _ in CLASSES]

    @property
    def has_due(self) -> bool:
        """A batch may leave."""
        high, normal, low = self._due
        return bool(normal or high or low)

    def put(self, job: Job) -> Line:
        """Queue `job`; its line may be due by that."""
        request = job.request
        key = request.key
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
        priority = job.priority
        rows = request.rows
        line.jobs[priority].append(job)
        line.rows += rows
        self.rows += rows
        waiting = self.waiting
        if not waiting[priority] and self._tags[priority] < self._virtual:
            self._tags[priority] = self._virtual
        waiting[priority] += rows
        if line.due:
            self._due[priority][line] = None
        elif line.rows >= self._rows_max:
            self._make_due(line)
        return line

    def hasten(self) -> None:
        """Make the line that waits longest due, for a version that has nothing to do."""
        if self._lines:
            self._make_due(next(iter(self._lines.values())))

    def ripen(self, now: float) -> float | None:
        """Make the lines due that waited long enough; return in how many seconds the next is."""
        next_at = None
        for line in self._lines.values():
            if line.due:
                continue
            due_at = line.oldest() + self._delay_s
            if due_at - now <= _TICK_S:
                self._make_due(line)
            elif next_at is None or due_at < next_at:
                next_at = due_at
        return None if next_at is None else next_at - now

    def take(self, now: float) -> Batch:
        """Return the next batch of the lines that are due; there must be one."""
        tags = self._tags
        lead = min((c for c in CLASSES if self._due[c]), key=tags.__getitem__)
        self._virtual = max(self._virtual, tags[lead])
        line = next(iter(self._due[lead]))
        batch = Batch()
        if sum(map(bool, line.jobs)) == 1:
            self._take_class(batch, line, lead, now)
        else:
            self._take_mixed(batch, line, now)
        self._settle(line, now)
        batch.pressed = self.rows > 0
        return batch

    def _take_class(self, batch: Batch, line: Line, priority: int, now: float) -> None:
        jobs = line.jobs[priority]
        taken = 0
        while jobs:
            rows = jobs[0].request.rows
            if batch.rows and batch.rows + rows > self._rows_max:
                break
            batch.add(jobs.popleft(), now)
            taken += rows
        self._charge(line, priority, taken)
        self._tags[priority] += batch.rows / WEIGHTS[priority]

    def _take_mixed(self, batch: Batch, line: Line, now: float) -> None:
        tags = self._tags
        classes = [c for c in CLASSES if line.jobs[c]]
        while classes:
            priority = min(classes, key=tags.__getitem__)
            jobs = line.jobs[priority]
            rows = jobs[0].request.rows
            if batch.rows and batch.rows + rows > self._rows_max:
                classes.remove(priority)
                continue
            before = batch.rows
            batch.add(jobs.popleft(), now)
            self._charge(line, priority, rows)
            # What was late did not leave, and costs nothing.
            tags[priority] += (batch.rows - before) / WEIGHTS[priority]
            if not jobs:
                classes.remove(priority)

    def _charge(self, line: Line, priority: int, rows: int) -> None:
        line.rows -= rows
        self.rows -= rows
        self.waiting[priority] -= rows

    def _settle(self, line: Line, now: float) -> None:
        """Give a line that sent a batch its next turn behind the others, or drop it."""
        for due in self._due:
            due.pop(line, None)
        if not line.rows:
            del self._lines[line.key]
            return
        line.due = False
        if line.rows >= self._rows_max or line.oldest() + self._delay_s <= now:
            self._make_due(line)

    def _make_due(self, line: Line) -> None:
        line.due = True
        for jobs, due in zip(line.jobs, self._due, strict=True):
            if jobs:
                due[line] = None
