import pytest

from dataplane.spool import Record, Spool, SpoolFull


def record(number, stream="s"):
    return Record(stream, b"payload-%d" % number)


def take(spool):
    """Remove the oldest file and return its records."""
    path, records = spool.oldest()
    spool.remove(path)
    return records


def test_records_come_back_oldest_first(tmp_path):
    spool = Spool(tmp_path, 1_000)
    spool.append([record(1), record(2, "other")], durable=True)
    spool.append([record(3)], durable=False)
    assert take(spool) == [record(1), record(2, "other")]
    assert take(spool) == [record(3)]
    assert spool.oldest() is None
    assert (len(spool), spool.size_bytes, list(tmp_path.iterdir())) == (0, 0, [])


def test_a_restart_keeps_unsent_files_and_appends(tmp_path):
    Spool(tmp_path, 1_000).append([record(1)], durable=False)
    again = Spool(tmp_path, 1_000)
    again.append([record(2)], durable=False)
    assert [take(again), take(again)] == [[record(1)], [record(2)]]


def test_removing_a_file_again_does_nothing(tmp_path):
    spool = Spool(tmp_path, 1_000)
    spool.append([record(1)], durable=False)
    spool.append([record(2)], durable=False)
    path, _ = spool.oldest()
    spool.remove(path)
    spool.remove(path)
    assert take(spool) == [record(2)]


def test_it_accepts_nothing_beyond_its_limit(tmp_path):
    spool = Spool(tmp_path, 50)
    spool.append([record(1)], durable=False)
    with pytest.raises(SpoolFull):
        spool.append([record(2), record(3)], durable=False)
    assert take(spool) == [record(1)]


def test_a_truncated_file_gives_its_complete_records(tmp_path):
    Spool(tmp_path, 1_000).append([record(1), record(2)], durable=False)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert take(Spool(tmp_path, 1_000)) == [record(1)]


def test_an_unfinished_file_is_removed(tmp_path):
    (tmp_path / "0000000000000001.tmp").write_bytes(b"half")
    assert Spool(tmp_path, 1_000).oldest() is None
    assert list(tmp_path.iterdir()) == []
