"""Signatures ("seals") of the batches that instances send through Redis.

A seal proves which instance sent a batch, in which boot, and when. Each instance has a secret
token. A root is derived from it, which the control plane stores instead of the token; from the root
a key for each (instance, boot); with that key HMAC-SHA256 over the name of the stream, the fields
of the seal, and the exact bytes of the batch. A client that can write to Redis but has no token can
neither forge a seal nor change a sealed batch, and cannot move a batch to another stream.
"""

from __future__ import annotations

import hmac

import msgspec

from contract.messages import MessageError

# The field of a stream entry that holds the seal, beside the batch.
SEAL_FIELD = b"seal"
SEAL_BYTES_MAX = 1_024
# Headers that name the sender of a request to the control plane, beside its token.
INSTANCE_HEADER = "x-interlock-instance"
HOME_HEADER = "x-interlock-home"
_PURPOSE = b"interlock seal 1"


class Seal(msgspec.Struct, frozen=True, array_like=True):
    """The signature of a batch; `instance` and `boot` name the process that signed it.

    The process may have read the batch from the spool of an earlier boot. `home` identifies the
    state directory, which distinguishes a second instance of the same name from a restart. `at_ms`
    is when the batch was sent, in Unix milliseconds of the sender's clock.
    """

    instance: str
    boot: str
    home: str
    at_ms: int
    mac: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Seal)


def seal_root(token: str) -> bytes:
    """Return the root that verifies a token's seals; the token cannot be derived from it."""
    return hmac.digest(token.encode(), _PURPOSE, "sha256")


def boot_key(root: bytes, instance: str, boot: str) -> bytes:
    """Return the key of one boot of one process."""
    return hmac.digest(root, _encoder.encode((instance, boot)), "sha256")


class Sealer:
    """Signs the batches of one process."""

    def __init__(self, token: str, instance: str, boot: str, home: str) -> None:
        # The identity of the process.
        self._instance, self._boot, self._home = instance, boot, home
        # The signing key.
        self._key = boot_key(seal_root(token), instance, boot)

    def seal(self, stream: str, data: bytes, at_ms: int) -> bytes:
        """Return the encoded seal of `data`, for the stream entry that carries both."""
        bare = Seal(self._instance, self._boot, self._home, at_ms, b"")
        return _encoder.encode(
            msgspec.structs.replace(bare, mac=_mac(self._key, bare, stream, data))
        )


def read_seal(data: bytes) -> Seal:
    """Parse a seal without verifying it. Raises MessageError."""
    if len(data) > SEAL_BYTES_MAX:
        raise MessageError(f"the seal has {len(data)} bytes; at most {SEAL_BYTES_MAX} are allowed")
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(f"not a seal: {error}") from error


def is_genuine(key: bytes, seal: Seal, stream: str, data: bytes) -> bool:
    """Return whether the holder of `key` signed these bytes for this stream."""
    return hmac.compare_digest(seal.mac, _mac(key, seal, stream, data))


def group_of(instance: str) -> str:
    """Return the instance of a process: `edge` for `edge/0`, `edge/1` and `edge`."""
    name, slash, slot = instance.rpartition("/")
    return name if slash and name and slot.isascii() and slot.isdecimal() else instance


def _mac(key: bytes, seal: Seal, stream: str, data: bytes) -> bytes:
    # A MessagePack value delimits itself, so no other head and batch give the same bytes.
    head = _encoder.encode((stream, seal.instance, seal.boot, seal.home, seal.at_ms))
    return hmac.digest(key, head + data, "sha256")
