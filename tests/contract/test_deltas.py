"""A delta makes the very bytes of the new table, or says that it does not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.deltas import decode_delta, lines_of, make_delta, put_together
from contract.routing import (
    Cluster,
    ModelRoute,
    RoutingTable,
    Signature,
    TableError,
    Tenant,
    decode_models,
    encode,
    pieces,
    renumbered,
)

# Names that could be taken for other parts of a table; the last three are no names of models.
NAMES = st.sampled_from(["a", "b", "c", "models", "a-1", "z", 'q"uote', "ü", 'x":{'])
TIMEOUTS = st.dictionaries(NAMES, st.integers(1, 3))


def table(generation: int, timeouts: dict[str, int], tenant: str = "t") -> bytes:
    models = {
        name: ModelRoute(
            signature=Signature(inputs=(), outputs=()), stable=None, versions={}, timeout_ms=ms
        )
        for name, ms in timeouts.items()
    }
    clusters = {"models": Cluster(endpoints=("http://t",))}
    tenants = {tenant: Tenant(keys=())}
    return encode(
        RoutingTable(generation=generation, models=models, clusters=clusters, tenants=tenants)
    )


def follow(before: bytes, delta: bytes) -> bytes:
    """Do what a data plane does."""
    told = decode_delta(delta)
    found = pieces(before)
    assert found is not None
    lines = {next(iter(decode_models(line))): line for line in found[1]}
    kept = {n: line for n, line in lines.items() if n not in told.removed} | lines_of(told)
    return put_together(told, (kept[name] for name in sorted(kept)))


@given(TIMEOUTS, TIMEOUTS, NAMES)
def test_a_delta_makes_the_new_table_to_the_byte(
    old: dict[str, int], new: dict[str, int], tenant: str
) -> None:
    before, after = table(1, old), table(2, new, tenant)
    delta = make_delta("1-x", before, after)
    assert delta is not None
    assert follow(before, delta) == after


def test_it_holds_what_changed_and_no_more() -> None:
    before = table(1, dict.fromkeys("abc", 1))
    delta = make_delta("1-x", before, table(2, {"a": 1, "b": 2, "d": 1}))
    assert delta is not None
    told = decode_delta(delta)
    assert (told.base, sorted(told.changed), told.removed) == ("1-x", ["b", "d"], ("c",))


def test_another_table_than_its_base_is_told_from_it() -> None:
    before, after = table(1, {"a": 1, "b": 1}), table(2, {"a": 1, "b": 2})
    delta = make_delta("1-x", before, after)
    assert delta is not None
    with pytest.raises(TableError, match="does not make the table"):
        follow(table(1, {"a": 3, "b": 1}), delta)


@pytest.mark.parametrize("data", [b"", b"{", b'{"schema":2}', b'{"base":1}'])
def test_what_is_no_delta_is_refused(data: bytes) -> None:
    with pytest.raises(TableError, match="not a delta"):
        decode_delta(data)


def test_a_table_without_lines_has_no_deltas() -> None:
    whole = table(1, {"a": 1})
    compact = msgspec.json.encode(msgspec.json.decode(whole))
    assert make_delta("1-x", compact, whole) is None


def test_the_generation_is_written_into_the_bytes_of_a_table() -> None:
    assert renumbered(table(0, {"a": 1}), 7) == table(7, {"a": 1})
