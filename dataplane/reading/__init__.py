"""Large requests are decompressed, counted and parsed in a separate process, one after the other.

The event loop never waits for them: it passes the bytes on and gets tensors, or an error. A request
can cost at most the memory and the time of that process, which are limited; small requests are not
read here.
"""

from dataplane.reading.jobs import Job
from dataplane.reading.queue import Reading

__all__ = ["Job", "Reading"]
