"""The state directory of a stack, and the lock that allows one stack per directory.

secrets.json  generated once      ports.json     ports of the last run
stack.json    while it is ready   logs/          one file per part
postgres/ redis/ triton/ artifacts/ mlflow-artifacts/ dataplane/: data of the parts
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from embedded.part import StackError

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_STATE_DIR = ROOT / ".state"
# The secrets of the first release, which every directory contains.
FIRST_SECRETS = {"postgres_password", "secret_key", "instance_token", "admin_password"}


@dataclass(frozen=True)
class Secrets:
    """The secrets that are generated at the first start and stored."""

    postgres_password: str
    redis_password: str
    mlflow_password: str
    secret_key: str
    # Authorises the control plane at Triton; no other process has it.
    triton_token: str
    # Authorises the data plane at the control plane, and signs its messages.
    instance_token: str
    admin_password: str
    admin_password_shown: bool = False
    # Empty in a file of an earlier release.
    operator_token: str = ""


def generate_secrets() -> Secrets:
    return Secrets(
        postgres_password=secrets.token_urlsafe(24),
        redis_password=secrets.token_urlsafe(24),
        mlflow_password=secrets.token_urlsafe(24),
        secret_key=secrets.token_urlsafe(48),
        triton_token=secrets.token_urlsafe(32),
        instance_token=secrets.token_urlsafe(32),
        admin_password=secrets.token_urlsafe(12),
    )


class StateDir:
    """The paths of a state directory; `open()` creates it, `locked()` locks it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.ports_file = self.path / "ports.json"
        self.secrets_file = self.path / "secrets.json"
        self.ready_file = self.path / "stack.json"
        self.process_file = self.path / "processes.json"
        self.lock_file = self.path / "lock"

    def open(self) -> None:
        """Create the directory, accessible only to its owner. Raises StackError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise StackError(
                f"Cannot create the state directory: {error}. Choose another with --state-dir."
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory for one stack. Raises StackError with the pid of the holder."""
        with self.lock_file.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StackError(
                    f"A stack is already running in {self.path} (pid {self.holder() or '?'}). "
                    "Stop it first, or choose another directory with --state-dir."
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def holder(self) -> int | None:
        """Return the pid in the lock file, which is valid only while the lock is held."""
        try:
            return int(self.lock_file.read_text())
        except (OSError, ValueError):
            return None

    def secrets(self, environ: Mapping[str, str]) -> Secrets:
        """Return the stored secrets, generated at first use; the environment overrides some.

        Secrets that are missing in a directory of an earlier release are added.

        Raises:
            StackError: the file of secrets is invalid.
        """
        try:
            document = json.loads(self.secrets_file.read_text())
            if missing := FIRST_SECRETS - document.keys():
                raise ValueError(f"{', '.join(sorted(missing))} is missing")
            stored = replace(generate_secrets(), **document)
        except FileNotFoundError:
            stored = generate_secrets()
        except (ValueError, TypeError, AttributeError) as error:
            raise StackError(f"{self.secrets_file} cannot be read: {error}.") from error
        if not stored.operator_token:
            stored = replace(stored, operator_token=secrets.token_urlsafe(32))
        if password := environ.get("INTERLOCK_ADMIN_PASSWORD"):
            stored = replace(stored, admin_password=password, admin_password_shown=True)
        if token := environ.get("INTERLOCK_TRITON_TOKEN"):
            stored = replace(stored, triton_token=token)
        self.write_private(self.secrets_file, asdict(stored))
        return stored

    def remember_password_shown(self, stored: Secrets) -> None:
        self.write_private(self.secrets_file, asdict(replace(stored, admin_password_shown=True)))

    def write_private(self, path: Path, document: Any) -> None:
        """Replace a JSON file atomically; only its owner can read it."""
        temporary = path.with_suffix(".tmp")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(document, indent=1))
        temporary.replace(path)
