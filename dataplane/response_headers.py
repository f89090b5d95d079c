"""The header lines that differ from answer to answer, with timings from a table: floats are slow.

Milliseconds with two decimals; every answer has three to five of them.
"""

from __future__ import annotations

# The text for each number of hundredths of a millisecond.
_SHOWN = tuple(b"%d.%02d" % divmod(n, 100) for n in range(10_000))
_PER_S = 100_000


# The last lines of each answer's headers: its stages and its id.
_ID = b"\r\nx-interlock-request-id: %b\r\n"
# For a computed answer, with the result of `computed_stages`.
COMPUTED_LINES = (
    b"server-timing: read;dur=%b,%b;dur=%b,queue;dur=%b,infer;dur=%b,total;dur=%b" + _ID
)
# For a cached answer, with the result of `cached_stages`.
CACHED_LINES = b"server-timing: read;dur=%b,cache;dur=%b,total;dur=%b" + _ID
Computed = tuple[bytes, bytes, bytes, bytes, bytes, bytes]


def computed_stages(
    read_s: float, before: bytes, before_s: float, queue_s: float, infer_s: float, total_s: float
) -> Computed:
    """Return the values for COMPUTED_LINES; `before` names the second stage."""
    try:
        return (
            _SHOWN[int(read_s * _PER_S + 0.5)],
            before,
            _SHOWN[int(before_s * _PER_S + 0.5)],
            _SHOWN[int(queue_s * _PER_S + 0.5)],
            _SHOWN[int(infer_s * _PER_S + 0.5)],
            _SHOWN[int(total_s * _PER_S + 0.5)],
        )
    except IndexError:
        read, second, queue, infer, total = (
            b"%.2f" % (stage_s * 1e3) for stage_s in (read_s, before_s, queue_s, infer_s, total_s)
        )
        return read, before, second, queue, infer, total


def cached_stages(read_s: float, cache_s: float, total_s: float) -> tuple[bytes, bytes, bytes]:
    """Return the values for CACHED_LINES."""
    try:
        return (
            _SHOWN[int(read_s * _PER_S + 0.5)],
            _SHOWN[int(cache_s * _PER_S + 0.5)],
            _SHOWN[int(total_s * _PER_S + 0.5)],
        )
    except IndexError:
        return b"%.2f" % (read_s * 1e3), b"%.2f" % (cache_s * 1e3), b"%.2f" % (total_s * 1e3)
