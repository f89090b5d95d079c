import pytest

from dataplane.staleness import Staleness
from tests.dataplane.groups import a_group


class Clocked:
    """A fake sync with a manual clock for the time of the last confirmation."""

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


def test_it_is_logged_once(caplog):
    staleness = aged("warn", 100.0)
    staleness.header()
    staleness.header()
    assert [record.message for record in caplog.records] == ["table.stale"]


@pytest.mark.parametrize("policy", ["warn", "fail"])
async def test_an_instance_whose_control_plane_is_broken(valkey, tmp_path, policy):
    settings = {"INTERLOCK_STALENESS": policy, "INTERLOCK_STALE_AFTER_S": "1"}
    async with a_group(valkey, tmp_path, workers=1, **settings) as group:
        confirmed = await group.predict()
        assert "x-interlock-stale" not in confirmed.headers
        group.control.data = b"{"
        while await group.metric("interlock_table_age_seconds") < 2.5:
            pass
        stale = await group.predict()
        ready = await group.get("/v2/health/ready")
    assert stale.status_code == 200
    assert ("x-interlock-stale" in stale.headers) is (policy == "warn")
    assert ready.status_code == (503 if policy == "fail" else 200)
