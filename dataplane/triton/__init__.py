"""Calls to Triton over HTTP/1.1 keep-alive connections, on asyncio and httptools.

One call is one request on one connection; it needs no task and no future, and ends with a callback.
Every call ends once, with a reply or a `TritonError`, within its deadline. All failures of the
network and of Triton become a `TritonError` here and nowhere else.
"""

from dataplane.triton.call_results import Fault, OnDone, Reply, TritonError, Unsent
from dataplane.triton.transport import Triton
from dataplane.triton.version_endpoints import Replicas

__all__ = ["Fault", "OnDone", "Replicas", "Reply", "Triton", "TritonError", "Unsent"]
