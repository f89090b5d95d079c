"""Compressed bodies of HTTP messages, in both directions: gzip and deflate.

A request's body is bounded by what it unpacks to, whatever it was packed into. The event loop only
waits for small bodies: larger ones are unpacked and packed by threads (zlib lets go of the
interpreter meanwhile).
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from dataplane.errors import Refusal, bad_request

# What the event loop packs or unpacks itself; about a millisecond.
INLINE_BYTES_MAX = 128 * 1024
# A gzip body may consist of several; each costs a copy of what is left.
MEMBERS_MAX = 16
_GZIP_BITS = 31
_ZLIB_BITS = 15
_ACCEPTED_MAX = 256

_threads = ThreadPoolExecutor(2, thread_name_prefix="compression")


def inflate(data: bytes, coding: bytes, bytes_max: int) -> bytes:
    """Return `data` unpacked. Raises Refusal: 413 beyond `bytes_max`, 400 where it is damaged."""
    bits = _GZIP_BITS if coding == b"gzip" else _deflate_bits(data)
    pieces = []
    left = bytes_max
    for _ in range(MEMBERS_MAX):
        member = zlib.decompressobj(bits)
        try:
            piece = member.decompress(data, left + 1)
        except zlib.error as error:
            raise bad_request("malformed_encoding", f"the body is damaged: {error}") from None
        if len(piece) > left:
            raise Refusal(413, "body_too_large", f"the body unpacks to over {bytes_max} bytes")
        if not member.eof:
            raise bad_request("malformed_encoding", "the compressed body ends before its end")
        pieces.append(piece)
        left -= len(piece)
        data = member.unused_data
        if not data:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if coding != b"gzip":
            break
    raise bad_request("malformed_encoding", "something stands behind the compressed body")


def deflate(body: bytes, coding: bytes) -> bytes:
    """Return `body` packed: fast rather than small."""
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP_BITS if coding == b"gzip" else _ZLIB_BITS)
    return packer.compress(body) + packer.flush()


def unpack(
    body: bytes, encoding: bytes, bytes_max: int, done: Callable[[bytes | Refusal], None]
) -> None:
    """Call `done` with `body` unpacked, now or later, or with why it cannot be."""
    coding = _coding(encoding)
    if coding is None:
        done(body)
    elif coding == b"":
        name = encoding.decode("ascii", "replace")[:40]
        done(Refusal(415, "unsupported_encoding", f"{name!r} is neither gzip nor deflate"))
    elif len(body) > INLINE_BYTES_MAX:
        _in_thread(lambda: inflate(body, coding, bytes_max), done)
    else:
        try:
            done(inflate(body, coding, min(bytes_max, INLINE_BYTES_MAX)))
        except Refusal as refusal:
            if refusal.status == 413 and bytes_max > INLINE_BYTES_MAX:
                # Larger than it looked: begin again where it may take its time.
                _in_thread(lambda: inflate(body, coding, bytes_max), done)
            else:
                done(refusal)


def pack(body: bytes, coding: bytes, done: Callable[[bytes], None]) -> None:
    """Call `done` with `body` packed, now or later; with `body` itself if that is no larger."""
    if len(body) <= INLINE_BYTES_MAX:
        done(min(deflate(body, coding), body, key=len))
        return

    def packed(result: bytes | Refusal) -> None:
        done(body if isinstance(result, Refusal) else min(result, body, key=len))

    _in_thread(lambda: deflate(body, coding), packed)


@lru_cache(maxsize=_ACCEPTED_MAX)
def accepted(header: bytes) -> bytes | None:
    """Return the coding that an `accept-encoding` likes best, None for none of ours."""
    weights: dict[bytes, float] = {}
    for item in header.lower().split(b","):
        name, *parameters = (part.strip() for part in item.split(b";"))
        weights[name] = _weight(parameters)
    other = weights.get(b"*", 0.0)
    gzip = weights.get(b"gzip", weights.get(b"x-gzip", other))
    best = max((gzip, b"gzip"), (weights.get(b"deflate", other), b"deflate"))
    return best[1] if best[0] > 0 else None


def _weight(parameters: list[bytes]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _coding(encoding: bytes) -> bytes | None:
    """Return the coding of a `content-encoding`: None for none, empty for one that is not known."""
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return None
    if name in (b"gzip", b"x-gzip"):
        return b"gzip"
    return b"deflate" if name == b"deflate" else b""


def _deflate_bits(data: bytes) -> int:
    """Tell zlib's format, which the name stands for, from the bare one that some clients send."""
    is_zlib = len(data) > 1 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return _ZLIB_BITS if is_zlib else -_ZLIB_BITS


def _in_thread(work: Callable[[], bytes], done: Callable[[bytes | Refusal], None]) -> None:
    def ended(future: asyncio.Future[bytes]) -> None:
        error = future.exception()
        if error is None:
            done(future.result())
        elif isinstance(error, Refusal):
            done(error)
        else:
            done(Refusal(500, "internal_error", "the body could not be handled"))

    asyncio.get_running_loop().run_in_executor(_threads, work).add_done_callback(ended)
