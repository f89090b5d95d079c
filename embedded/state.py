"""The one directory that holds all a stack remembers, and the lock that gives it to one stack.

secrets.json  generated once      ports.json     chosen last time
stack.json    while it is ready   logs/          one file a part
postgres/ redis/ triton/ artifacts/ mlflow-artifacts/ dataplane/: the parts' own
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
# Those that no directory was ever without.
FIRST_SECRETS = {"postgres_password", "secret_key", "instance_token", "admin_password"}


@dataclass(frozen=True)
class Secrets:
    """What is generated at the first start and kept."""

    postgres_password: str
    redis_password: str
    mlflow_password: str
    secret_key: str
    # What the control plane shows to Triton; nobody else has it.
    triton_token: str
    # What the data plane shows to the control plane, and signs with.
    instance_token: str
    admin_password: str
    admin_password_shown: bool = False
    # Empty in what an earlier release kept.
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
    """Paths of a state directory; `open()` makes it, `locked()` owns it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.ports_file = self.path / "ports.json"
        self.secrets_file = self.path / "secrets.json"
        self.ready_file = self.path / "stack.json"
        self.process_file = self.path / "processes.json"
        self.lock_file = self.path / "lock"

    def open(self) -> None:
        """Make the directory, for its owner's eyes only."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise StackError(
                f"Cannot make the state directory: {error}. Choose another with --state-dir."
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one stack. Raises StackError that names the pid of the holder."""
        with self.lock_file.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StackError(
                    f"A stack is already running on {self.path} (pid {self.holder() or '?'}). "
                    "Stop it first, or choose another directory with --state-dir."
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def holder(self) -> int | None:
        """The pid that the lock file names (it is true only while the lock is held)."""
        try:
            return int(self.lock_file.read_text())
        except (OSError, ValueError):
            return None

    def secrets(self, environ: Mapping[str, str]) -> Secrets:
        """The kept secrets, generated at first use; the environment may set some of them.

        A directory of an earlier release lacks some, which are added.
        """
        try:
            document = json.loads(self.secrets_file.read_text())
            if missing := FIRST_SECRETS - document.keys():
                raise ValueError(f"{', '.join(sorted(missing))} is not there")
            kept = replace(generate_secrets(), **document)
        except FileNotFoundError:
            kept = generate_secrets()
        except (ValueError, TypeError, AttributeError) as error:
            raise StackError(f"{self.secrets_file} cannot be read: {error}.") from error
        if not kept.operator_token:
            kept = replace(kept, operator_token=secrets.token_urlsafe(32))
        if password := environ.get("INTERLOCK_ADMIN_PASSWORD"):
            kept = replace(kept, admin_password=password, admin_password_shown=True)
        if token := environ.get("INTERLOCK_TRITON_TOKEN"):
            kept = replace(kept, triton_token=token)
        self.write_private(self.secrets_file, asdict(kept))
        return kept

    def remember_password_shown(self, kept: Secrets) -> None:
        self.write_private(self.secrets_file, asdict(replace(kept, admin_password_shown=True)))

    def write_private(self, path: Path, document: Any) -> None:
        """Replace a JSON file whole, readable by its owner only."""
        temporary = path.with_suffix(".tmp")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(document, indent=1))
        temporary.replace(path)
