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


def test_the_directory_is_for_its_owner_only(state: StateDir) -> None:
    assert state.path.stat().st_mode & 0o777 == 0o700


def test_it_says_why_the_directory_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StackError, match=r"Not a directory.*--state-dir"):
        StateDir(tmp_path / "file" / "state").open()


def test_a_second_stack_is_refused_and_told_who_holds_the_directory(state: StateDir) -> None:
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
    kept = state.secrets({"INTERLOCK_ADMIN_PASSWORD": "from outside"})

    assert kept.admin_password == "from outside"
    assert kept.admin_password_shown


def test_the_generated_password_is_shown_once(state: StateDir) -> None:
    state.remember_password_shown(state.secrets({}))

    assert state.secrets({}).admin_password_shown


def test_a_directory_of_an_earlier_release_gets_the_secrets_that_it_lacks(state: StateDir) -> None:
    kept = asdict(state.secrets({}))
    older = {name: kept[name] for name in FIRST_SECRETS}
    state.secrets_file.write_text(json.dumps(older))

    first, second = state.secrets({}), state.secrets({})

    assert first == second
    assert first.secret_key == kept["secret_key"]
    assert first.triton_token not in {"", kept["triton_token"]}


def test_it_does_not_go_on_with_damaged_secrets(state: StateDir) -> None:
    state.secrets_file.write_text("{}")

    with pytest.raises(StackError, match=r"secrets\.json cannot be read"):
        state.secrets({})
