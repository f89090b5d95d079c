"""Measures bars in a separate process, since Django has one default database per process."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np

from bench.bars import Bar


def measure_in_process(function: str, seed: int, runs: int) -> Iterator[Bar]:
    """Yield the bars of `function` ("module:name"). Raises RuntimeError if it fails.

    `function` takes a random number generator and the number of runs.
    """
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, function, seed, runs))
    process.start()
    there.close()
    try:
        while not isinstance(message := here.recv(), str):
            yield message
        if message:
            raise RuntimeError(message)
    except EOFError:
        raise RuntimeError(f"{function} ended without a result") from None
    finally:
        process.terminate()
        process.join()


def _send(pipe: Connection, function: str, seed: int, runs: int) -> None:
    """Send each bar, and then the traceback of an error, or an empty string."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    module, name = function.split(":")
    try:
        for bar in getattr(importlib.import_module(module), name)(
            np.random.default_rng(seed), runs
        ):
            pipe.send(bar)
    except Exception:
        pipe.send(traceback.format_exc())
    else:
        pipe.send("")
    # The parent ends this process.
    pipe.close()
