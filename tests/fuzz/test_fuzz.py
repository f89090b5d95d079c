"""The fuzzers: a few examples in every run of the tests, all of them if called by name.

`./run fuzz` names this directory and so gets EXAMPLES_LONG for each fuzzer, or the number in
INTERLOCK_FUZZ_EXAMPLES, and MUTATIONS_LONG inputs for the mutators together.
"""

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.fuzzers import FUZZERS
from tests.fuzz.mutations import MUTATORS

EXAMPLES_SHORT = 150
EXAMPLES_LONG = 50_000
MUTATIONS_SHORT = 10_000
MUTATIONS_LONG = 1_000_000


@pytest.fixture
def is_requested(pytestconfig):
    return any("fuzz" in argument for argument in pytestconfig.args)


@pytest.fixture
def examples(is_requested):
    return int(
        os.environ.get("INTERLOCK_FUZZ_EXAMPLES", EXAMPLES_LONG if is_requested else EXAMPLES_SHORT)
    )


@pytest.fixture
def mutations(is_requested):
    return int(
        os.environ.get(
            "INTERLOCK_FUZZ_MUTATIONS", MUTATIONS_LONG if is_requested else MUTATIONS_SHORT
        )
    )


@pytest.mark.parametrize("name", sorted(MUTATORS))
def test_it_withstands_damaged(name, mutations):
    check, part = MUTATORS[name]
    check(random.Random(1), int(mutations * part))


@pytest.mark.parametrize("name", sorted(FUZZERS))
def test_it_withstands(name, examples):
    check, strategies = FUZZERS[name]
    run = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run(given(**strategies)(check))()
