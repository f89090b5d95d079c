"""Compression of HTTP bodies, in both directions: gzip and deflate.

The decompressed size of a request's body is limited, also as a multiple of its compressed size. The
event loop handles small bodies only: larger requests are decompressed where they are read
(`dataplane.reading`), larger answers are compressed by threads (zlib releases the GIL).
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from dataplane.errors import Refusal, bad_request

# Bytes that the event loop decompresses itself; less than 0.1 ms.
INLINE_BYTES_MAX = 16 * 1024
# Bytes that it compresses itself; about 1 ms.
PACKED_INLINE_BYTES_MAX = 128 * 1024
# A body may decompress to at most RATIO_MAX times its bytes, or to RATIO_FREE_BYTES if that is
# more. Numbers as text compress to a third, images of few colours to a fiftieth; the limit of zlib
# is a thousandth.
RATIO_MAX = 64
RATIO_FREE_BYTES = 1024 * 1024
# Members of a gzip body.
MEMBERS_MAX = 16
# Bytes that are read and decompressed in one step, so that a limit is checked before memory is
# allocated.
_STEP_BYTES = 16 * 1024
_PIECE_BYTES = 64 * 1024
_GZIP_BITS = 31
_ZLIB_BITS = 15
_ACCEPTED_MAX = 256

_threads = ThreadPoolExecutor(2, thread_name_prefix="compression")


def inflate(
    data: bytes,
    coding: bytes,
    bytes_max: int,
    check: Callable[[bytes], None] | None = None,
) -> bytes:
    """Return `data` decompressed; `check` gets each piece as it comes, and may refuse it.

    Raises Refusal: 413 beyond `bytes_max`, 400 if it is damaged or decompresses to too much for its
    length.
    """
    ratio_limit = max(RATIO_FREE_BYTES, len(data) * RATIO_MAX)
    length = 0
    pieces = []
    try:
        for piece in _pieces(data, coding):
            length += len(piece)
            if length > bytes_max:
                raise Refusal(
                    413, "body_too_large", f"the body decompresses to more than {bytes_max} bytes"
                )
            if length > ratio_limit:
                raise bad_request(
                    "compression_ratio",
                    f"the body of {len(data)} bytes decompresses to more than {ratio_limit} bytes; "
                    f"at most {RATIO_MAX} times its bytes or {RATIO_FREE_BYTES} bytes are allowed",
                )
            if check is not None:
                check(piece)
            pieces.append(piece)
    except zlib.error as error:
        raise bad_request(
            "malformed_encoding", f"the body cannot be decompressed: {error}"
        ) from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _pieces(data: bytes, coding: bytes) -> Iterator[bytes]:
    bits = _GZIP_BITS if coding == b"gzip" else _deflate_bits(data)
    member = zlib.decompressobj(bits)
    members = 1
    view = memoryview(data)
    for start in range(0, len(data), _STEP_BYTES):
        packed: bytes | memoryview = view[start : start + _STEP_BYTES]
        while packed:
            if member.eof:
                if coding != b"gzip" or members == MEMBERS_MAX:
                    raise bad_request(
                        "malformed_encoding", "there is data after the end of the compressed body"
                    )
                members += 1
                member = zlib.decompressobj(bits)
            if piece := member.decompress(packed, _PIECE_BYTES):
                yield piece
            packed = member.unconsumed_tail or member.unused_data
    while not member.eof and (piece := member.decompress(b"", _PIECE_BYTES)):
        yield piece
    if not member.eof:
        raise bad_request("malformed_encoding", "the compressed body is truncated")


def deflate(body: bytes, coding: bytes) -> bytes:
    """Return `body` compressed, for speed rather than size."""
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP_BITS if coding == b"gzip" else _ZLIB_BITS)
    return packer.compress(body) + packer.flush()


def unpack(body: bytes, encoding: bytes, bytes_max: int) -> tuple[bytes, bytes | None]:
    """Return `body` decompressed and None; or `body` as it is and its coding, if it is too large.

    The event loop decompresses small bodies only. Raises Refusal.
    """
    coding = _coding(encoding)
    if coding is None:
        return body, None
    if coding == b"":
        name = encoding.decode("ascii", "replace")[:40]
        raise Refusal(
            415,
            "unsupported_encoding",
            f"unknown content encoding {name!r}; expected gzip or deflate",
        )
    if len(body) > INLINE_BYTES_MAX:
        return body, coding
    try:
        return inflate(body, coding, min(bytes_max, INLINE_BYTES_MAX)), None
    except Refusal as refusal:
        if refusal.status != 413 or bytes_max <= INLINE_BYTES_MAX:
            raise
        return body, coding


def pack(body: bytes, coding: bytes, done: Callable[[bytes], None]) -> None:
    """Call `done` with `body` compressed, now or later; with `body` itself if that is no larger."""
    if len(body) <= PACKED_INLINE_BYTES_MAX:
        done(min(deflate(body, coding), body, key=len))
        return

    def packed(future: asyncio.Future[bytes]) -> None:
        done(body if future.exception() else min(future.result(), body, key=len))

    loop = asyncio.get_running_loop()
    loop.run_in_executor(_threads, deflate, body, coding).add_done_callback(packed)


@lru_cache(maxsize=_ACCEPTED_MAX)
def accepted(header: bytes) -> bytes | None:
    """Return the preferred coding of an `accept-encoding` header, None for none of ours."""
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
    """Return the coding of a `content-encoding`: None for none, empty for an unknown one."""
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return None
    if name in (b"gzip", b"x-gzip"):
        return b"gzip"
    return b"deflate" if name == b"deflate" else b""


def _deflate_bits(data: bytes) -> int:
    """Distinguish the zlib format, which `deflate` means, from the raw one some clients send."""
    is_zlib = len(data) > 1 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
    return _ZLIB_BITS if is_zlib else -_ZLIB_BITS
