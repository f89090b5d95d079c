from contract.messages import STREAM_OUTCOMES
from dataplane.spool import Record, Spool
from dataplane.spool_dir import SpoolDir


def payloads(spool):
    found = []
    while (oldest := spool.oldest()) is not None:
        found += [record.payload for record in oldest[1]]
        spool.remove(oldest[0])
    return found


def add(spool, *values):
    for value in values:
        spool.append([Record(STREAM_OUTCOMES, value)], durable=True)


async def test_what_a_dead_process_left_is_taken_over_in_order(tmp_path):
    dead = SpoolDir(tmp_path, "a", 1_000)
    add(dead.spool, b"1", b"2")
    dead.close()
    living = SpoolDir(tmp_path, "b", 1_000)
    add(living.spool, b"0")
    await living.adopt()
    assert payloads(living.spool) == [b"0", b"1", b"2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "b.lock"]
    assert living.spool.size_bytes == 0


async def test_what_a_living_process_has_stays_its_own(tmp_path):
    sibling = SpoolDir(tmp_path, "a", 1_000)
    add(sibling.spool, b"1")
    other = SpoolDir(tmp_path, "b", 1_000)
    await other.adopt()
    assert payloads(other.spool) == []
    assert payloads(sibling.spool) == [b"1"]


async def test_a_spool_of_before_there_were_workers_is_taken_over(tmp_path):
    add(Spool(tmp_path, 1_000), b"1")
    lodging = SpoolDir(tmp_path, "b", 1_000)
    await lodging.adopt()
    assert payloads(lodging.spool) == [b"1"]
