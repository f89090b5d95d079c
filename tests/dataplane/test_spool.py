import pytest

from dataplane.spool import Record, Spool, SpoolFull


def record(number, stream="s"):
    return Record(stream, b"payload-%d" % number)


def test_records_come_back_oldest_first(tmp_path):
    spool = Spool(tmp_path, 1_000)
    spool.append([record(1), record(2, "other")], durable=True)
    spool.append([record(3)], durable=False)
    assert spool.oldest() == [record(1), record(2, "other")]
    spool.remove_oldest()
    assert spool.oldest() == [record(3)]
    spool.remove_oldest()
    assert spool.oldest() is None
    assert (len(spool), spool.size_bytes, list(tmp_path.iterdir())) == (0, 0, [])


def test_a_restart_finds_what_was_not_sent_and_goes_on_behind_it(tmp_path):
    Spool(tmp_path, 1_000).append([record(1)], durable=False)
    again = Spool(tmp_path, 1_000)
    again.append([record(2)], durable=False)
    assert again.oldest() == [record(1)]
    again.remove_oldest()
    assert again.oldest() == [record(2)]


def test_it_takes_nothing_beyond_its_bound(tmp_path):
    spool = Spool(tmp_path, 50)
    spool.append([record(1)], durable=False)
    with pytest.raises(SpoolFull):
        spool.append([record(2), record(3)], durable=False)
    assert spool.oldest() == [record(1)]


def test_half_a_file_gives_what_is_whole(tmp_path):
    Spool(tmp_path, 1_000).append([record(1), record(2)], durable=False)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert Spool(tmp_path, 1_000).oldest() == [record(1)]


def test_a_file_that_was_never_finished_is_cleared_away(tmp_path):
    (tmp_path / "0000000000000001.tmp").write_bytes(b"half")
    assert Spool(tmp_path, 1_000).oldest() is None
    assert list(tmp_path.iterdir()) == []
