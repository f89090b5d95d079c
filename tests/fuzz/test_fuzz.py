"""The fuzzers: a taste in every run of the tests, the whole meal when asked for by name.

`./run fuzz` names this folder and so gets EXAMPLES_LONG for each fuzzer, or as many as the
environment says in INTERLOCK_FUZZ_EXAMPLES.
"""

import os

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.fuzzers import FUZZERS

EXAMPLES_SHORT = 150
EXAMPLES_LONG = 50_000


@pytest.fixture
def examples(pytestconfig):
    asked = any("fuzz" in argument for argument in pytestconfig.args)
    return int(
        os.environ.get("INTERLOCK_FUZZ_EXAMPLES", EXAMPLES_LONG if asked else EXAMPLES_SHORT)
    )


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
