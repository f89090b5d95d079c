"""A seal proves who sent which bytes to which stream; any change breaks it."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from contract.message_signatures import (
    SEAL_BYTES_MAX,
    Seal,
    Sealer,
    boot_key,
    group_of,
    is_genuine,
    read_seal,
    seal_root,
)
from contract.messages import STREAMS, MessageError

TEXTS = st.text(max_size=30)
TOKENS = st.text(min_size=1, max_size=60)
# The signed parts: instance, boot, home, stream, bytes, time.
SAYINGS = st.tuples(
    TEXTS, TEXTS, TEXTS, st.sampled_from(STREAMS), st.binary(max_size=200), st.integers(0, 2**53)
)


def sealed(token: str, saying: tuple[str, str, str, str, bytes, int]) -> Seal:
    instance, boot, home, stream, data, at_ms = saying
    return read_seal(Sealer(token, instance, boot, home).seal(stream, data, at_ms))


def proven(token: str, seal: Seal, stream: str, data: bytes) -> bool:
    key = boot_key(seal_root(token), seal.instance, seal.boot)
    return is_genuine(key, seal, stream, data)


@given(TOKENS, SAYINGS)
def test_a_seal_verifies(token: str, saying: tuple[str, str, str, str, bytes, int]) -> None:
    instance, boot, home, stream, data, at_ms = saying
    seal = sealed(token, saying)
    assert (seal.instance, seal.boot, seal.home, seal.at_ms) == (instance, boot, home, at_ms)
    assert proven(token, seal, stream, data)


@given(TOKENS, SAYINGS, SAYINGS)
def test_a_change_of_any_part_breaks_the_seal(
    token: str,
    saying: tuple[str, str, str, str, bytes, int],
    other: tuple[str, str, str, str, bytes, int],
) -> None:
    """Change each part alone, and all of them together."""
    _, _, _, stream, data, _ = saying
    seal = sealed(token, saying)
    names = ("instance", "boot", "home", "stream", "data", "at_ms")
    for parts in (*([name] for name in names), list(names)):
        new = {name: value for name, value in zip(names, other, strict=True) if name in parts}
        old = dict(zip(names, saying, strict=True))
        if all(old[name] == value for name, value in new.items()):
            continue
        changed = msgspec.structs.replace(
            seal, **{name: value for name, value in new.items() if name not in ("stream", "data")}
        )
        assert not proven(token, changed, new.get("stream", stream), new.get("data", data))


@given(TOKENS, TOKENS, SAYINGS)
def test_another_token_makes_another_seal(
    token: str, guess: str, saying: tuple[str, str, str, str, bytes, int]
) -> None:
    assume(token != guess)
    assert not proven(token, sealed(guess, saying), saying[3], saying[4])


@given(st.binary(max_size=80))
def test_any_bytes_are_a_seal_or_raise_a_message_error(data: bytes) -> None:
    seal = None
    with suppress(MessageError):
        seal = read_seal(data)
    assert seal is None or not proven("token", seal, STREAMS[0], b"data")


def test_the_size_of_a_seal_is_limited() -> None:
    with pytest.raises(MessageError, match="bytes"):
        read_seal(b"\x95" + b"\xa0" * SEAL_BYTES_MAX)


@pytest.mark.parametrize(
    ("instance", "group"),
    [
        ("edge", "edge"),
        ("edge/0", "edge"),
        ("edge/12", "edge"),
        ("edge/x", "edge/x"),
        ("/0", "/0"),
        ("edge/", "edge/"),
        ("edge/٣", "edge/٣"),
    ],
)
def test_workers_belong_to_their_instance(instance: str, group: str) -> None:
    assert group_of(instance) == group
