import pytest

from dataplane.staleness import Staleness


class Clocked:
    """Stands for the sync: when the table was confirmed, on a clock that the test turns."""

    def __init__(self, confirmed_at=None):
        self.confirmed_at = confirmed_at
        self.table_age_s = 0.0


def aged(policy, age_s, *, confirmed=True):
    sync = Clocked(1.0 if confirmed else None)
    sync.table_age_s = age_s
    return Staleness(sync, policy, 60.0)


@pytest.mark.parametrize(
    ("policy", "age_s", "header", "ready"),
    [
        ("serve", 1_000.0, b"", True),
        ("warn", 59.0, b"", True),
        ("warn", 61.5, b"x-interlock-stale: 61\r\n", True),
        ("fail", 59.0, b"", True),
        ("fail", 61.5, b"", False),
    ],
)
def test_what_each_policy_does(policy, age_s, header, ready):
    staleness = aged(policy, age_s)
    assert staleness.header() == header
    assert (staleness.unready_reason() is None) is ready


def test_a_table_that_was_never_confirmed_is_stale_at_once():
    assert "since the start" in aged("fail", 0.1, confirmed=False).unready_reason()
    assert aged("warn", 3.0, confirmed=False).header() == b"x-interlock-stale: 3\r\n"


def test_the_log_is_told_once(caplog):
    staleness = aged("warn", 100.0)
    staleness.header()
    staleness.header()
    assert [record.message for record in caplog.records] == ["table.stale"]
