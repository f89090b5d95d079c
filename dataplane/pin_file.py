"""The models that are pinned on an instance, on disk; see `dataplane.emergency_pin`. Blocking."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
import orjson

log = logging.getLogger("interlock.dataplane")

# Stands for every model among those that are pinned.
PIN_ALL = "*"

_decoder = msgspec.json.Decoder(list[str])


class PinFile:
    """The pinned models on disk; shared by the workers of an instance. Blocking."""

    def __init__(self, path: Path) -> None:
        # The file; a temporary one is written beside it.
        self._path = path

    def load(self) -> frozenset[str]:
        """Return the pinned models. A file that cannot be read pins everything: that is safe."""
        try:
            return frozenset(_decoder.decode(self._path.read_bytes()))
        except FileNotFoundError:
            return frozenset()
        except (OSError, msgspec.DecodeError) as error:
            log.error("pins.unreadable: everything is pinned: %s", error)
            return frozenset((PIN_ALL,))

    def store(self, names: frozenset[str]) -> bool:
        """Write, sync, rename; False when the disk does not take it."""
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(orjson.dumps(sorted(names)))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path)
        except OSError as error:
            log.error("pins.not_stored: they are lost with a restart: %s", error)
            return False
        return True


class Outcome(msgspec.Struct, frozen=True):
    """What a change led to: in `confirmed` of `workers` workers, and `stored` or not."""

    pinned: list[str]
    stored: bool
    workers: int = 1
    confirmed: int = 1


def changed(names: frozenset[str], model: str, *, pin: bool) -> frozenset[str]:
    """Return `names` with `model` pinned or not. To unpin `*` unpins everything."""
    if pin:
        return names | {model}
    return frozenset() if model == PIN_ALL else names - {model}
