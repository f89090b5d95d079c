"""PostgreSQL is restored under load from a dump that is some generations old.

No prediction fails. Rollouts hold until an operator starts an epoch and then continue, without
waiting for the instances that stopped between the dump and the restore.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from time import monotonic

from contract.generations import epoch_of
from tests.faults.backup import dump, restore, start_epoch
from tests.faults.ground import Ground, wait_until
from tests.faults.load import Load, failures, report
from tests.faults.planes import Plane


def test_a_restored_database_fails_no_prediction_and_rollouts_continue(
    ground: Ground, tmp_path: Path
) -> None:
    path = tmp_path / "interlock.dump"
    with Load(ground.port, ground.question) as load:
        rollout = dump_in_mid_rollout(ground, tmp_path, path)
        wait_until(lambda: ground.passed(rollout), 60, "the rollout passes")
        make_generations(ground)
        forgotten = min(applied(ground).values())
        restored_at = monotonic()
        restore(ground, path)
        assert newest(ground) < forgotten
        wait_until(lambda: "never published" in reason(ground, rollout), 60, "the rollout holds")

        start_epoch(ground)
        wait_until(lambda: ground.passed(rollout), 60, "the rollout of the dump passes")
        following = ground.start_rollout()
        wait_until(lambda: ground.passed(following), 60, "another rollout passes")
        took_s = monotonic() - restored_at
    report(f"PostgreSQL restored (two rollouts passed {took_s:.1f} s later)", load, restored_at)

    assert failures(load.answers) == {}
    assert {epoch_of(each) for each in applied(ground).values()} == {1}
    expect_audited(ground)


def dump_in_mid_rollout(ground: Ground, directory: Path, path: Path) -> str:
    """Dump while a rollout bakes, with an instance that stops right after the dump."""
    with closing(Plane(ground, directory, ground.stack.urls.web, "doomed")) as doomed:
        doomed.start()
        wait_until(lambda: "doomed" in applied(ground), 20, "it reports")
        rollout = ground.start_rollout()
        wait_until(lambda: ground.phase(rollout) == "baking", 30, "the canary gets traffic")
        dump(ground, path)
    return rollout


def make_generations(ground: Ground) -> None:
    """Make data planes serve tables that are newer than the dump."""
    before = newest(ground)
    passed = ground.start_rollout()
    wait_until(lambda: ground.passed(passed), 60, "one more rollout passes")
    wait_until(lambda: min(applied(ground).values()) > before, 20, "its tables are applied")


def applied(ground: Ground) -> dict[str, int]:
    """Return the generations that the live instances report."""
    query = (
        "SELECT name, applied_generation FROM rollouts_instance WHERE NOT is_stopping "
        "AND reported_at > clock_timestamp() - interval '3 seconds'"
    )
    return dict(ground.rows(query))


def newest(ground: Ground) -> int:
    return int(ground.rows("SELECT max(generation) FROM rollouts_publishedtable")[0][0])


def reason(ground: Ground, path: str) -> str:
    query = "SELECT reason FROM rollouts_rollout WHERE id = %s"
    return str(ground.rows(query, path.split("/")[1])[0][0])


def expect_audited(ground: Ground) -> None:
    """Assert that the audit log has the epoch's actor."""
    query = "SELECT target, actor <> '' FROM registry_auditentry WHERE action = 'epoch.started'"
    assert ground.rows(query) == [("epoch 1", True)]
