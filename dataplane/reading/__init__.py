"""Large requests are unpacked, counted and parsed in a process of their own, one after the other.

The event loop never waits for one of them: it hands the bytes over and gets tensors, or the reason
why there are none. What a request can cost at worst is the memory and the time of that process,
which are bounded; small requests never come here.
"""

from dataplane.reading.jobs import Job
from dataplane.reading.queue import Reading

__all__ = ["Job", "Reading"]
