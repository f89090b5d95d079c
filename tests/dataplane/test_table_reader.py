"""Tables are read in slices, compared with the applied one."""

import asyncio

import msgspec
import pytest

from contract.routing import Cluster, RoutingTable, TableError, encode
from dataplane.table_reader import TableFile, TableReader, release_slowly
from tests.dataplane.worlds import canary, model

MAIN = {"main": Cluster(endpoints=("127.0.0.1:1",))}
ROUTE = model()


def table_of(count, generation=1, clusters=MAIN, **changes):
    models = {f"m{n:04}": ROUTE for n in range(count)}
    return RoutingTable(generation=generation, models=models | changes, clusters=clusters)


async def read_after(first, second):
    reader = TableReader()
    reading = await reader.read(encode(first), None)
    reader.keep(reading)
    return reading, await reader.read(encode(second), reading.table)


async def test_every_model_of_a_first_table_is_changed():
    reading = await TableReader().read(encode(table_of(100)), None)
    assert reading.table == table_of(100)
    assert len(reading.changed) == 100


async def test_unchanged_models_are_the_same_objects():
    first, second = await read_after(table_of(100), table_of(100, 2, m0003=model(timeout_ms=7)))
    assert second.changed == ("m0003",)
    assert second.table.models["m0000"] is first.table.models["m0000"]
    assert second.table.models["m0003"].timeout_ms == 7


async def test_removed_versions_are_named():
    _, second = await read_after(table_of(3), table_of(2, 2))
    assert second.removed == ("m0002",)


async def test_a_cluster_that_moved_changes_its_models():
    moved = {"main": Cluster(endpoints=("127.0.0.1:2",))}
    _, second = await read_after(table_of(3), table_of(3, 2, moved))
    assert second.changed == ("m0000", "m0001", "m0002")


async def test_a_table_of_one_line_is_read_as_well():
    data = encode(table_of(5)).replace(b"\n", b"")
    reading = await TableReader().read(data, table_of(5))
    assert (reading.table, reading.changed) == (table_of(5), ())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b'"stable":"1"', b'"stable":"9"', 1),
        lambda data: data.replace(b'"stable":"1"', b'"stable":1', 1),
        lambda data: data.replace(b'"schema":1', b'"schema":2'),
        lambda data: b"",
    ],
)
async def test_a_damaged_table_is_refused_completely(damage):
    with pytest.raises(TableError):
        await TableReader().read(damage(encode(table_of(50, m0001=model(split=canary(5))))), None)


async def test_other_tasks_run_while_a_large_table_is_read():
    data = encode(table_of(5_000))
    turns = 0
    done = False

    async def other():
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await TableReader().read(data, None)
    done = True
    await task
    assert turns > 5


async def test_a_table_is_stored_and_loaded(tmp_path):
    file = TableFile(tmp_path / "t.json")
    assert await file.load(TableReader()) is None
    file.store(encode(table_of(2)))
    assert (await file.load(TableReader())).table == table_of(2)
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


async def test_released_dictionaries_are_empty():
    things = dict.fromkeys(range(1000), msgspec.UNSET)
    await release_slowly(things)
    assert things == {}
