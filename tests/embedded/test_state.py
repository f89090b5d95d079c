from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from embedded.part import StackError
from embedded.state import FIRST_SECRETS, StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    state.open()
    return state


def test_only_the_owner_can_access_the_directory(state: StateDir) -> None:
    assert state.path.stat().st_mode & 0o777 == 0o700


def test_an_error_has_the_reason_why_the_directory_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StackError, match=r"Not a directory.*--state-dir"):
        StateDir(tmp_path / "file" / "state").open()


def test_a_second_stack_is_refused_with_the_pid_of_the_first(state: StateDir) -> None:
    with (
        state.locked(),
        pytest.raises(StackError, match=rf"already running.*pid {os.getpid()}"),
        StateDir(state.path).locked(),
    ):
        pass


def test_the_lock_is_free_again_afterwards(state: StateDir) -> None:
    with state.locked():
        pass
    with state.locked():
        assert state.holder() == os.getpid()


def test_secrets_are_generated_once_and_kept_private(state: StateDir) -> None:
    first, second = state.secrets({}), state.secrets({})

    assert first == second
    assert len(first.admin_password) >= 16
    assert state.secrets_file.stat().st_mode & 0o777 == 0o600


def test_no_two_directories_share_a_secret(state: StateDir, tmp_path: Path) -> None:
    other = StateDir(tmp_path / "other")
    other.open()

    assert other.secrets({}).secret_key != state.secrets({}).secret_key


def test_a_password_from_the_environment_is_used_and_not_shown(state: StateDir) -> None:
    stored = state.secrets({"INTERLOCK_ADMIN_PASSWORD": "from outside"})

    assert stored.admin_password == "from outside"
    assert stored.admin_password_shown


def test_the_generated_password_is_shown_once(state: StateDir) -> None:
    state.remember_password_shown(state.secrets({}))

    assert state.secrets({}).admin_password_shown


def test_missing_secrets_of_an_earlier_release_are_added(state: StateDir) -> None:
    stored = asdict(state.secrets({}))
    older = {name: stored[name] for name in FIRST_SECRETS}
    state.secrets_file.write_text(json.dumps(older))

    first, second = state.secrets({}), state.secrets({})

    assert first == second
    assert first.secret_key == stored["secret_key"]
    assert first.triton_token not in {"", stored["triton_token"]}


def test_damaged_secrets_are_an_error(state: StateDir) -> None:
    state.secrets_file.write_text("{}")

    with pytest.raises(StackError, match=r"secrets\.json cannot be read"):
        state.secrets({})
