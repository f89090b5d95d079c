"""Seals on what instances send through Redis: who sent it, in which life, and when.

An instance has a token that nobody else has. From it comes a root, which the control plane keeps
instead of the token; from the root a key for each (instance, boot); with that HMAC-SHA256 over the
stream's name, what the seal says, and the exact bytes of the batch. Whoever writes into Redis
without the token can make no seal, and can change none: not even move a batch to another stream.
"""

from __future__ import annotations

import hmac

import msgspec

from contract.messages import MessageError

# The field of a stream entry beside the batch.
SEAL_FIELD = b"seal"
SEAL_BYTES_MAX = 1_024
# What requests to the control plane say of who asks, beside the token.
INSTANCE_HEADER = "x-interlock-instance"
HOME_HEADER = "x-interlock-home"
_PURPOSE = b"interlock seal 1"


class Seal(msgspec.Struct, frozen=True, array_like=True):
    """Who sealed a batch: one process of an instance, which may have found it on its disk.

    `home` names the state directory, so that a second instance of the same name is told from a
    restart. `at_ms` is when the batch left, by the sender's clock in Unix milliseconds.
    """

    instance: str
    boot: str
    home: str
    at_ms: int
    mac: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Seal)


def seal_root(token: str) -> bytes:
    """Return what a token's seals are checked with; the token cannot be told from it."""
    return hmac.digest(token.encode(), _PURPOSE, "sha256")


def boot_key(root: bytes, instance: str, boot: str) -> bytes:
    """Return the key of one life of one process."""
    return hmac.digest(root, _encoder.encode((instance, boot)), "sha256")


class Sealer:
    """Seals what one process sends."""

    def __init__(self, token: str, instance: str, boot: str, home: str) -> None:
        # Who it is.
        self._instance, self._boot, self._home = instance, boot, home
        # What it seals with.
        self._key = boot_key(seal_root(token), instance, boot)

    def seal(self, stream: str, data: bytes, at_ms: int) -> bytes:
        """Return the seal on `data`, as it stands beside it in a stream entry."""
        bare = Seal(self._instance, self._boot, self._home, at_ms, b"")
        return _encoder.encode(
            msgspec.structs.replace(bare, mac=_mac(self._key, bare, stream, data))
        )


def read_seal(data: bytes) -> Seal:
    """Parse a seal, which proves nothing yet. Raises MessageError."""
    if len(data) > SEAL_BYTES_MAX:
        raise MessageError(f"a seal of {len(data)} bytes")
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(f"not a seal: {error}") from error


def is_genuine(key: bytes, seal: Seal, stream: str, data: bytes) -> bool:
    """Say whether the holder of `key` sealed these bytes for this stream."""
    return hmac.compare_digest(seal.mac, _mac(key, seal, stream, data))


def group_of(instance: str) -> str:
    """Return the instance that a process belongs to: `edge` of `edge/0`, `edge/1` and `edge`."""
    name, slash, slot = instance.rpartition("/")
    return name if slash and name and slot.isascii() and slot.isdecimal() else instance


def _mac(key: bytes, seal: Seal, stream: str, data: bytes) -> bytes:
    # MessagePack says where it ends, so that no other head and batch make the same bytes.
    head = _encoder.encode((stream, seal.instance, seal.boot, seal.home, seal.at_ms))
    return hmac.digest(key, head + data, "sha256")
