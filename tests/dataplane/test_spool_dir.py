from contract.messages import STREAM_OUTCOMES
from dataplane.spool import Record, Spool
from dataplane.spool_dir import SpoolDir


def payloads(spool):
    result = []
    while (oldest := spool.oldest()) is not None:
        result += [record.payload for record in oldest[1]]
        spool.remove(oldest[0])
    return result


def add(spool, *values):
    for value in values:
        spool.append([Record(STREAM_OUTCOMES, value)], durable=True)


async def test_files_of_a_dead_process_are_adopted_in_order(tmp_path):
    dead = SpoolDir(tmp_path, "a", 1_000)
    add(dead.spool, b"1", b"2")
    dead.close()
    living = SpoolDir(tmp_path, "b", 1_000)
    add(living.spool, b"0")
    await living.adopt()
    assert payloads(living.spool) == [b"0", b"1", b"2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "b.lock"]
    assert living.spool.size_bytes == 0


async def test_files_of_a_running_process_are_not_adopted(tmp_path):
    sibling = SpoolDir(tmp_path, "a", 1_000)
    add(sibling.spool, b"1")
    other = SpoolDir(tmp_path, "b", 1_000)
    await other.adopt()
    assert payloads(other.spool) == []
    assert payloads(sibling.spool) == [b"1"]


async def test_a_spool_from_before_workers_existed_is_adopted(tmp_path):
    add(Spool(tmp_path, 1_000), b"1")
    spool_dir = SpoolDir(tmp_path, "b", 1_000)
    await spool_dir.adopt()
    assert payloads(spool_dir.spool) == [b"1"]
