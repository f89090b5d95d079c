"""The file of the models that are pinned on an instance: see `dataplane.emergency_pin`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
import orjson

log = logging.getLogger("interlock.dataplane")

# Stands for all models.
PIN_ALL = "*"

_decoder = msgspec.json.Decoder(list[str])


class PinFile:
    """The pinned models on disk, which the workers of an instance share. Blocking."""

    def __init__(self, path: Path) -> None:
        # The file; a temporary one is written beside it.
        self._path = path

    def load(self) -> frozenset[str]:
        """Return the pinned models. An unreadable file pins all models, which is safe."""
        try:
            return frozenset(_decoder.decode(self._path.read_bytes()))
        except FileNotFoundError:
            return frozenset()
        except (OSError, msgspec.DecodeError) as error:
            log.error("pins.unreadable: all models are pinned: %s", error)
            return frozenset((PIN_ALL,))

    def store(self, names: frozenset[str]) -> bool:
        """Write, sync, rename; False if the disk cannot store it."""
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(orjson.dumps(sorted(names)))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path)
        except OSError as error:
            log.error("pins.not_stored: a restart loses the pins: %s", error)
            return False
        return True


class Outcome(msgspec.Struct, frozen=True):
    """The result of a change: `confirmed` of `workers` workers, and whether it is `stored`."""

    pinned: list[str]
    stored: bool
    workers: int = 1
    confirmed: int = 1


def changed(names: frozenset[str], model: str, *, pin: bool) -> frozenset[str]:
    """Return `names` with `model` pinned or unpinned. Unpinning `*` unpins all models."""
    if pin:
        return names | {model}
    return frozenset() if model == PIN_ALL else names - {model}
