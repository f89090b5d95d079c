"""The queue of requests for one version, and the choice of the next batch.

Requests wait in lines, one per key: only requests of one line may share a batch. Within and between
lines the priority classes share the sent rows by weight (start-time fair queueing): each class has
a tag that grows by rows / weight with the rows that it sends, and the class with the lowest tag
goes next. A class that returns from a rest starts at the tag of those that did not rest, so resting
has neither benefit nor cost.

The bound: for each row that a class sent in its last batch, the others send at most as many as the
ratio of their weights to its own, 20 for the lowest class, and two more batches, before it sends
again. Rows on slots that no other class of the line needs are not charged.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from dataplane.batch_reply import Output
from dataplane.codec import InferRequest
from dataplane.triton import TritonError

HIGH, NORMAL, LOW = 0, 1, 2
CLASSES = (HIGH, NORMAL, LOW)
WEIGHTS = (16, 4, 1)
PRIORITIES = {"high": HIGH, "normal": NORMAL, "low": LOW}
# The deadline of a job whose client hung up: it is dropped when it is reached in the queue.
ABANDONED = float("-inf")
# Empty lines that are kept for reuse.
_SPARE_MAX = 4
# The precision of the loop's timers.
_TICK_S = 0.001


class Job(Protocol):
    """A request that waits for its rows; exactly one of the two methods is called, once.

    `deadline` and `submitted_at` are on `time.monotonic`. `is_urgent` says that little time is
    left: its line does not wait to fill. `priority` is one of the classes.
    """

    request: InferRequest
    deadline: float
    submitted_at: float
    is_urgent: bool
    priority: int

    def answered(self, outputs: list[Output], start: int, dispatched_at: float) -> None: ...

    def failed(self, error: TritonError) -> None: ...


class Batch:
    """Jobs that are sent together; rarely used fields are class attributes."""

    # Jobs whose deadline passed before they were sent; they are not in the batch.
    late: Sequence[Job] = ()
    # When it was sent, monotonic, and its expected time; 0 for a trifling batch.
    sent_at = 0.0
    cost_s = 0.0
    # Jobs whose own deadline passed while the batch was in flight; their rows stay in it.
    expired: Sequence[Job] = ()
    # Fires at the first deadline, if the deadlines are far apart.
    timer: TimerHandle | None = None
    # Whether its end was reported.
    ended = False

    def __init__(self, jobs: list[Job], rows: int, now: float) -> None:
        if len(jobs) == 1:
            soonest = latest = jobs[0].deadline
        else:
            deadlines = [job.deadline for job in jobs]
            soonest, latest = min(deadlines), max(deadlines)
        if soonest <= now:
            self.late = [job for job in jobs if job.deadline <= now]
            jobs = [job for job in jobs if job.deadline > now]
            rows -= sum(job.request.rows for job in self.late)
            soonest = min((job.deadline for job in jobs), default=now)
        # In the order of their rows in the batch.
        self.jobs = jobs
        # The rows of all of them.
        self.rows = rows
        # The first deadline among them.
        self.soonest = soonest
        # The last one.
        self.latest = latest


class Line:
    """The waiting requests of one key, with a queue for each class."""

    __slots__ = ("due", "jobs", "key", "rows")

    def __init__(self) -> None:
        # The key.
        self.key: object = None
        # Queues by class, each in the order of arrival.
        self.jobs: tuple[deque[Job], ...] = tuple(deque() for _ in CLASSES)
        # The rows of all of them.
        self.rows = 0
        # Whether a batch of it may be sent as soon as possible: it is full, or has waited long
        # enough.
        self.due = False

    def oldest(self) -> float:
        return min(jobs[0].submitted_at for jobs in self.jobs if jobs)


class FairQueue:
    """All lines of one version."""

    __slots__ = (
        "_delay_s",
        "_due",
        "_lines",
        "_spare",
        "_tags",
        "_virtual",
        "due_lines",
        "rows",
        "rows_max",
        "waiting",
    )

    def __init__(self, rows_max: int, delay_s: float) -> None:
        # Rows of a full batch; set from outside.
        self.rows_max = rows_max
        # How long a line that is not full waits for more requests.
        self._delay_s = delay_s
        # Lines with waiting requests by key, in the order in which they began to wait.
        self._lines: dict[object, Line] = {}
        # Empty lines for reuse.
        self._spare: list[Line] = []
        # By class: the due lines with requests of the class, in the order of their turns.
        self._due: tuple[dict[Line, None], ...] = tuple({} for _ in CLASSES)
        # By class: the rows sent so far, divided by the weight.
        self._tags = [0.0 for _ in CLASSES]
        # The tag of the last class, at which a class that rested starts.
        self._virtual = 0.0
        # The number of due lines: this many batches may be sent, and more if a line is long.
        self.due_lines = 0
        # Waiting rows.
        self.rows = 0
        # Waiting rows by class.
        self.waiting = [0 for _ in CLASSES]

    def put(self, job: Job, key: object, rows: int) -> bool:
        """Queue `job`; return whether its line is due."""
        priority = job.priority
        line = self._lines.get(key)
        if line is None:
            line = self._begin(key)
        line.jobs[priority].append(job)
        line.rows = in_line = line.rows + rows
        self.rows += rows
        waiting = self.waiting
        before = waiting[priority]
        waiting[priority] = before + rows
        if not before and self._tags[priority] < self._virtual:
            self._tags[priority] = self._virtual
        if line.due:
            self._due[priority][line] = None
            return True
        if in_line >= self.rows_max or job.is_urgent:
            self._make_due(line)
            return True
        return False

    def mark_oldest_due(self) -> None:
        """Make the line that waits longest due, for an idle version."""
        if self._lines:
            self._make_due(next(iter(self._lines.values())))

    def mark_due(self, now: float) -> float | None:
        """Make lines that waited long enough due; return the seconds until the next one is."""
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

    def take(self, now: float, rows_max: int | None = None) -> Batch:
        """Return the next batch of the due lines; there must be one.

        It has at most `rows_max` rows, by default those of a full batch, or one job of more rows.
        """
        if rows_max is None:
            rows_max = self.rows_max
        lead = self._lead()
        if self._tags[lead] > self._virtual:
            self._virtual = self._tags[lead]
        line = next(iter(self._due[lead]))
        before = line.rows
        if self.waiting[lead] == self.rows:
            jobs = self._take_class(line, lead, rows_max)
        else:
            jobs = self._take_mixed(line, lead, now, rows_max)
        batch = Batch(jobs, before - line.rows, now)
        self._settle(line, now)
        return batch

    def head(self) -> Job:
        """Return the first job of the next batch; there must be one."""
        lead = self._lead()
        return next(iter(self._due[lead])).jobs[lead][0]

    def drop(self, now: float) -> Job:
        """Remove the first job of the next batch without charging its class."""
        lead = self._lead()
        line = next(iter(self._due[lead]))
        queue = line.jobs[lead]
        job = queue.popleft()
        self._charge(line, lead, job.request.rows)
        if not line.rows:
            self._settle(line, now)
        elif not queue:
            del self._due[lead][line]
        return job

    def _lead(self) -> int:
        """Return the class that goes next; one of them must have a due line."""
        tags = self._tags
        lead = -1
        for priority in CLASSES:
            if self._due[priority] and (lead < 0 or tags[priority] < tags[lead]):
                lead = priority
        return lead

    def _take_class(self, line: Line, priority: int, rows_max: int) -> list[Job]:
        """Take the next jobs if no other class has waiting requests."""
        queue = line.jobs[priority]
        rows = line.rows
        if rows <= rows_max:
            jobs = list(queue)
            queue.clear()
        else:
            jobs, rows = [], 0
            while queue and (not jobs or rows + queue[0].request.rows <= rows_max):
                job = queue.popleft()
                jobs.append(job)
                rows += job.request.rows
        self._charge(line, priority, rows)
        self._tags[priority] += rows / WEIGHTS[priority]
        return jobs

    def _take_mixed(self, line: Line, lead: int, now: float, rows_max: int) -> list[Job]:
        jobs: list[Job] = []
        rows = 0
        tags = self._tags
        classes = [priority for priority in CLASSES if line.jobs[priority]]
        while classes:
            priority = min(classes, key=tags.__getitem__)
            queue = line.jobs[priority]
            more = queue[0].request.rows
            if rows and rows + more > rows_max:
                classes.remove(priority)
                continue
            job = queue.popleft()
            jobs.append(job)
            self._charge(line, priority, more)
            if job.deadline > now:
                # Late jobs are not sent, and rows that no other class needs are not charged.
                rows += more
                if priority == lead or len(classes) > 1:
                    tags[priority] += more / WEIGHTS[priority]
            if not queue:
                classes.remove(priority)
        return jobs

    def _charge(self, line: Line, priority: int, rows: int) -> None:
        line.rows -= rows
        self.rows -= rows
        self.waiting[priority] -= rows

    def _settle(self, line: Line, now: float) -> None:
        """Give a line that sent a batch its next turn after the others, or remove it if empty."""
        for due in self._due:
            if line in due:
                del due[line]
        line.due = False
        self.due_lines -= 1
        if not line.rows:
            del self._lines[line.key]
            if len(self._spare) < _SPARE_MAX:
                self._spare.append(line)
        elif line.rows >= self.rows_max or line.oldest() + self._delay_s <= now:
            self._make_due(line)

    def _begin(self, key: object) -> Line:
        line = self._spare.pop() if self._spare else Line()
        line.key = key
        self._lines[key] = line
        return line

    def _make_due(self, line: Line) -> None:
        line.due = True
        self.due_lines += 1
        for priority in CLASSES:
            if line.jobs[priority]:
                self._due[priority][line] = None
