from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.bucketing import bucket
from contract.routing import (
    CanarySplit,
    Cluster,
    ExperimentSplit,
    RoutingTable,
    TableError,
    VariantRoute,
    check,
    decode,
    decode_models,
    decode_unchecked,
    encode,
    split_table,
)
from tests.contract.examples import DIGITS, TABLE, WORDS


def table_with(**changes):
    model = msgspec.structs.replace(DIGITS, **changes)
    return msgspec.structs.replace(TABLE, models={"digits": model})


def experiment(*weights, coverage_bp=10_000):
    variants = tuple(
        VariantRoute(name=f"v{i}", version="1", weight_bp=weight)
        for i, weight in enumerate(weights)
    )
    return ExperimentSplit(
        id="e", inclusion_salt="i", variant_salt="v", coverage_bp=coverage_bp, variants=variants
    )


def canary(weight_bp, baseline_bp=0):
    return CanarySplit(id="r", salt="s", version="2", weight_bp=weight_bp, baseline_bp=baseline_bp)


def test_the_same_table_gives_the_same_bytes_in_any_order():
    turned = msgspec.structs.replace(TABLE, models=dict(reversed(TABLE.models.items())))
    assert encode(turned) == encode(TABLE)


def test_fields_of_a_later_minor_are_ignored():
    assert decode(encode(TABLE).replace(b'"generation":42', b'"generation":42,"later":1')) == TABLE


@pytest.mark.parametrize(
    ("before", "after"),
    [(b'"schema":1', b'"schema":2'), (b'"generation":42', b'"generation":"x"'), (b"{", b"")],
)
def test_it_refuses_tables_that_it_cannot_parse(before, after):
    with pytest.raises(TableError, match="not a routing table of schema 1"):
        decode(encode(TABLE).replace(before, after, 1))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (table_with(stable="9"), "stable version '9'"),
        (table_with(stable=None), "needs a stable version"),
        (table_with(split=experiment(4_000, 5_000)), "do not sum"),
        (table_with(split=experiment(10_000, coverage_bp=10_001)), "outside 0 to 10000"),
        (table_with(split=CanarySplit(id="r", salt="s", version="9", weight_bp=1)), "version '9'"),
        (table_with(split=CanarySplit(id="r", salt="s", version="2", weight_bp=-1)), "outside"),
        (table_with(split=canary(6_000, 4_001)), "together are more than 10000"),
        (table_with(split=canary(0, -1)), "outside 0 to 10000"),
        (msgspec.structs.replace(TABLE, clusters={}), "unknown cluster 'main'"),
        (msgspec.structs.replace(TABLE, clusters={"main": Cluster(endpoints=())}), "no endpoint"),
    ],
)
def test_it_refuses_a_table_that_contradicts_itself(table, message):
    with pytest.raises(TableError, match=message):
        check(table)


def test_a_table_may_have_no_models():
    empty = RoutingTable(generation=1, models={}, clusters={})
    assert decode(encode(empty)) == empty


def test_a_table_read_line_by_line_is_the_same_table():
    parts = split_table(encode(TABLE))
    assert parts is not None
    frame, lines = parts
    models = {name: model for line in lines for name, model in decode_models(line).items()}
    assert msgspec.structs.replace(decode_unchecked(frame), models=models) == TABLE
    assert len(models) == len(TABLE.models)


def test_a_name_with_a_line_break_stays_on_one_line():
    table = msgspec.structs.replace(TABLE, models={"a\n,": TABLE.models["digits"]})
    frame, lines = split_table(encode(table)) or (b"", iter(()))
    assert [list(decode_models(line)) for line in lines] == [["a\n,"]]
    assert decode_unchecked(frame).models == {}


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\n\n", b"{\n}", b'{"models":{\n}\n', b'{\n "models":{\n}\n}\n']
)
def test_a_table_without_lines_of_models_cannot_be_split(data):
    assert split_table(data) is None


@given(st.text(max_size=20))
def test_a_variant_without_weight_gets_no_units(unit):
    variant = experiment(0, 10_000, 0).variant_of(unit)
    assert variant is not None
    assert variant.name == "v1"


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_canary_and_baseline_get_their_shares_without_overlap(weight_bp, rest_bp):
    baseline_bp = min(rest_bp, 10_000 - weight_bp)
    split = canary(weight_bp, baseline_bp)
    check(table_with(split=split))
    counts = Counter(split.variant_at(point) for point in range(10_000))
    stable_bp = 10_000 - weight_bp - baseline_bp
    assert counts == Counter(canary=weight_bp, baseline=baseline_bp, stable=stable_bp)


@given(st.integers(0, 9_999), st.lists(st.integers(0, 10_000), min_size=2, max_size=6))
def test_a_rising_weight_keeps_every_unit_of_the_canary(point, weights):
    met = [canary(w, min(w, 10_000 - w)).variant_at(point) for w in sorted(weights)]
    if "canary" in met:
        assert set(met[met.index("canary") :]) == {"canary"}


@given(st.text(max_size=20), st.integers(1, 10_000))
def test_a_unit_is_in_the_baseline_only_from_the_far_end(unit, baseline_bp):
    is_last = bucket("s", unit) >= 10_000 - baseline_bp
    assert canary(0, baseline_bp).variant_of(unit) == ("baseline" if is_last else "stable")


def test_a_split_from_before_the_baseline_existed_has_none():
    split = decode(encode(TABLE).replace(b',"baseline_bp":0,"exposures":false', b"")).models
    assert split == TABLE.models


def test_an_experiment_includes_its_coverage_and_splits_it_by_weight():
    split = WORDS.split
    assert isinstance(split, ExperimentSplit)
    met = [split.variant_of(f"u{i}") for i in range(20_000)]
    control = sum(variant is not None and variant.name == "control" for variant in met)
    assert abs(sum(variant is not None for variant in met) - 12_000) < 400
    assert abs(control - 6_000) < 300
