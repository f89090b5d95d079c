"""Requests and their results, as functions of time, user and arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataplane.ends import ANSWERED, FAILED

Rng = np.random.Generator
Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Latency is lognormal with a median of 20 ms.
MEDIAN_S, SIGMA = 0.02, 0.5


@dataclass(frozen=True)
class Requests:
    """Assigned requests, by arrival. `at_s` counts from the simulation's start.

    `step` is the rollout's step of the table that assigned them, −1 before the first.
    """

    at_s: Array
    user: Integers
    is_canary: Flags
    instance: int
    step: int


@dataclass(frozen=True)
class Fates:
    """The ends of requests, by the numbers of `dataplane.ends`, and their durations.

    A FAILED request of the canary falls back to stable.
    """

    end: Integers
    took_s: Array


Fate = Callable[[Rng, Requests], Fates]
# The requests per second at a time, over all instances.
Rate = Callable[[float], float]


@dataclass(frozen=True)
class Traffic:
    """The traffic of a model.

    With `users`, each request has a random one of this many users; without, each request has its
    own unit. `instances` get the traffic. `lost` requests are assigned, but never counted.
    """

    rate: Rate
    fate: Fate
    users: int = 0
    instances: tuple[int, ...] = (0, 1, 2, 3)
    lost: Callable[[Rng, Requests], Flags] | None = None


def steady(per_second: float) -> Rate:
    """Return a constant rate."""
    return lambda at_s: per_second


def failing(errors: Callable[[Requests], Array | float], slower: Slower | None = None) -> Fate:
    """Return a fate in which each request fails independently with its probability in `errors`."""

    def fate(rng: Rng, requests: Requests) -> Fates:
        n = requests.at_s.size
        end = np.where(rng.random(n) < errors(requests), FAILED, ANSWERED)
        took_s = MEDIAN_S * rng.lognormal(0.0, SIGMA, n)
        return Fates(end, took_s if slower is None else took_s * slower(requests))

    return fate


Slower = Callable[[Requests], Array | float]


def unanswered(share: float, end: int, took_s: float) -> Fate:
    """Return a fate in which the canary leaves a share of its requests unanswered."""

    def fate(rng: Rng, requests: Requests) -> Fates:
        n = requests.at_s.size
        is_left = requests.is_canary & (rng.random(n) < share)
        usual_s = MEDIAN_S * rng.lognormal(0.0, SIGMA, n)
        return Fates(np.where(is_left, end, ANSWERED), np.where(is_left, took_s, usual_s))

    return fate
