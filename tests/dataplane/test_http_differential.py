"""Our protocol against h11 on the same bytes; the long run is in tests/fuzz."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataplane.h11_oracle import (
    ask_h11,
    ask_ours,
    check_against_h11,
    hostile_bytes,
    plain_requests,
)

pieces = st.none() | st.integers(1, 40)


@given(data=plain_requests(), piece=pieces)
@settings(max_examples=300, deadline=None)
def test_it_finds_what_h11_finds_in_well_formed_requests(data, piece):
    ours, refused = ask_ours(data, piece)
    assert (ours, refused) == ask_h11(data)


@given(data=hostile_bytes, piece=pieces)
@settings(max_examples=300, deadline=None)
def test_it_finds_nothing_in_hostile_bytes_that_h11_does_not(data, piece):
    check_against_h11(data, piece)


@given(good=plain_requests(), at=st.integers(0, 400), noise=st.binary(max_size=3), piece=pieces)
@settings(max_examples=300, deadline=None)
def test_it_finds_nothing_in_damaged_requests_that_h11_does_not(good, at, noise, piece):
    check_against_h11(good[:at] + noise + good[at + len(noise) :], piece)
