"""Requests as they come, and what their version makes of them: functions of time, user and arm."""

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

# Latency is lognormal, 20 ms in the median.
MEDIAN_S, SIGMA = 0.02, 0.5


@dataclass(frozen=True)
class Requests:
    """Requests that were assigned, by arrival. `at_s` is since the simulation's start.

    `step` is the rollout's step whose table assigned them, −1 before the first.
    """

    at_s: Array
    user: Integers
    is_canary: Flags
    instance: int
    step: int


@dataclass(frozen=True)
class Fates:
    """How requests end for their version, by the numbers of `dataplane.ends`, and after how long.

    A canary's FAILED ones fall back to stable.
    """

    end: Integers
    took_s: Array


Fate = Callable[[Rng, Requests], Fates]
# How many requests a second come at a time, over all instances.
Rate = Callable[[float], float]


@dataclass(frozen=True)
class Traffic:
    """What a model gets. Without `users` each request is of a unit of its own.

    With `users` each request is of one of so many, all alike. `instances` are those that get it.
    What is `lost` is assigned and never counted.
    """

    rate: Rate
    fate: Fate
    users: int = 0
    instances: tuple[int, ...] = (0, 1, 2, 3)
    lost: Callable[[Rng, Requests], Flags] | None = None


def steady(per_second: float) -> Rate:
    """The same rate at all times."""
    return lambda at_s: per_second


def failing(errors: Callable[[Requests], Array | float], slower: Slower | None = None) -> Fate:
    """Each request fails on its own with the chance that `errors` says of it."""

    def fate(rng: Rng, requests: Requests) -> Fates:
        n = requests.at_s.size
        end = np.where(rng.random(n) < errors(requests), FAILED, ANSWERED)
        took_s = MEDIAN_S * rng.lognormal(0.0, SIGMA, n)
        return Fates(end, took_s if slower is None else took_s * slower(requests))

    return fate


Slower = Callable[[Requests], Array | float]


def unanswered(share: float, end: int, took_s: float) -> Fate:
    """The canary leaves a share of its requests without an answer; stable answers all."""

    def fate(rng: Rng, requests: Requests) -> Fates:
        n = requests.at_s.size
        is_left = requests.is_canary & (rng.random(n) < share)
        usual_s = MEDIAN_S * rng.lognormal(0.0, SIGMA, n)
        return Fates(np.where(is_left, end, ANSWERED), np.where(is_left, took_s, usual_s))

    return fate
