"""A delta gives the exact bytes of the new table, or is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.deltas import assemble_table, changed_lines, decode_delta, make_delta
from contract.routing import (
    Cluster,
    ModelRoute,
    RoutingTable,
    Signature,
    TableError,
    Tenant,
    decode_models,
    encode,
    split_table,
    with_generation,
)

# Names that look like other parts of a table; the last three are not valid model names.
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
    """Apply `delta` as a data plane does."""
    parsed = decode_delta(delta)
    parts = split_table(before)
    assert parts is not None
    lines = {next(iter(decode_models(line))): line for line in parts[1]}
    kept = {n: line for n, line in lines.items() if n not in parsed.removed} | changed_lines(parsed)
    return assemble_table(parsed, (kept[name] for name in sorted(kept)))


@given(TIMEOUTS, TIMEOUTS, NAMES)
def test_a_delta_gives_the_new_table_byte_for_byte(
    old: dict[str, int], new: dict[str, int], tenant: str
) -> None:
    before, after = table(1, old), table(2, new, tenant)
    delta = make_delta("1-x", before, after)
    assert delta is not None
    assert follow(before, delta) == after


def test_it_holds_only_the_changed_models() -> None:
    before = table(1, dict.fromkeys("abc", 1))
    delta = make_delta("1-x", before, table(2, {"a": 1, "b": 2, "d": 1}))
    assert delta is not None
    parsed = decode_delta(delta)
    assert (parsed.base, sorted(parsed.changed), parsed.removed) == ("1-x", ["b", "d"], ("c",))


def test_a_delta_for_another_base_is_refused() -> None:
    before, after = table(1, {"a": 1, "b": 1}), table(2, {"a": 1, "b": 2})
    delta = make_delta("1-x", before, after)
    assert delta is not None
    with pytest.raises(TableError, match="has another hash"):
        follow(table(1, {"a": 3, "b": 1}), delta)


@pytest.mark.parametrize("data", [b"", b"{", b'{"schema":2}', b'{"base":1}'])
def test_other_data_is_refused(data: bytes) -> None:
    with pytest.raises(TableError, match="not a delta"):
        decode_delta(data)


def test_a_table_without_lines_has_no_deltas() -> None:
    whole = table(1, {"a": 1})
    compact = msgspec.json.encode(msgspec.json.decode(whole))
    assert make_delta("1-x", compact, whole) is None


def test_the_generation_is_written_into_the_bytes_of_a_table() -> None:
    assert with_generation(table(0, {"a": 1}), 7) == table(7, {"a": 1})
