"""Calls to Triton: HTTP/1.1 keep-alive connections of our own, on asyncio and httptools.

One call is one request on one connection; no task and no future is made for it, its owner is
called back. Every call ends once, with a reply or a `TritonError`, within its deadline. All that
the network or Triton can do wrong becomes a `TritonError` here and nowhere else.
"""

from dataplane.triton.call_results import Fault, OnDone, Reply, TritonError, Unsent
from dataplane.triton.transport import Triton
from dataplane.triton.version_endpoints import Copies

__all__ = ["Copies", "Fault", "OnDone", "Reply", "Triton", "TritonError", "Unsent"]
