"""The `server-timing` lines of answers, made from a table: floats are slow to write.

Milliseconds with two digits behind the point; every answer has three to five of them.
"""

from __future__ import annotations

# What is shown for so many hundredths of a millisecond.
_SHOWN = tuple(b"%d.%02d" % divmod(n, 100) for n in range(10_000))
_PER_S = 100_000


def computed_line(
    read_s: float, before: bytes, before_s: float, queue_s: float, infer_s: float, total_s: float
) -> bytes:
    """Return the line of an answer that a version computed; `before` names its second stage."""
    try:
        return (
            b"server-timing: read;dur=%b,%b;dur=%b,queue;dur=%b,infer;dur=%b,total;dur=%b\r\n"
            % (
                _SHOWN[int(read_s * _PER_S + 0.5)],
                before,
                _SHOWN[int(before_s * _PER_S + 0.5)],
                _SHOWN[int(queue_s * _PER_S + 0.5)],
                _SHOWN[int(infer_s * _PER_S + 0.5)],
                _SHOWN[int(total_s * _PER_S + 0.5)],
            )
        )
    except IndexError:
        return (
            b"server-timing: read;dur=%.2f,%b;dur=%.2f,queue;dur=%.2f,infer;dur=%.2f,"
            b"total;dur=%.2f\r\n"
            % (read_s * 1e3, before, before_s * 1e3, queue_s * 1e3, infer_s * 1e3, total_s * 1e3)
        )


def cached_line(read_s: float, cache_s: float, total_s: float) -> bytes:
    """Return the line of an answer from the cache."""
    try:
        return b"server-timing: read;dur=%b,cache;dur=%b,total;dur=%b\r\n" % (
            _SHOWN[int(read_s * _PER_S + 0.5)],
            _SHOWN[int(cache_s * _PER_S + 0.5)],
            _SHOWN[int(total_s * _PER_S + 0.5)],
        )
    except IndexError:
        return b"server-timing: read;dur=%.2f,cache;dur=%.2f,total;dur=%.2f\r\n" % (
            read_s * 1e3,
            cache_s * 1e3,
            total_s * 1e3,
        )
