"""`python -m embedded.settings_pages`: writes what shows settings from where they are declared.

docs/settings.md and .env.example are made whole; other documents and docker-compose.yml have blocks
between markers. `tests/embedded/test_settings_pages.py` fails where a file differs.
"""

from __future__ import annotations

import importlib
import os
import re
import secrets
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from contract.variables import Variable
from dataplane import config
from embedded.ports import USUAL_PORTS, variable_of
from embedded.state import ROOT

COMMAND = "./run settings"
COMPOSE = ROOT / "docker-compose.yml"
# They become part of URLs.
_PLAIN = "letters, digits, - and _ only"
COMPOSE_ONLY = (
    Variable("POSTGRES_PASSWORD", "", f"PostgreSQL's password; {_PLAIN}", is_secret=True),
    Variable("REDIS_PASSWORD", "", f"Redis' password; {_PLAIN}", is_secret=True),
    Variable(
        "MLFLOW_PASSWORD", "", "of MLflow's user interlock, at least 12 characters; read when that "
        "account is made", is_secret=True,
    ),
    Variable("MLFLOW_SECRET_KEY", "", "signs the forms of MLflow's pages", is_secret=True),
    Variable(
        "REDIS_MAXMEMORY", "2gb", "memory of Redis: three streams of INTERLOCK_STREAM_BYTES_MAX, "
        "the shared cache, and room",
    ),
    Variable("INTERLOCK_TAG", "local", "tag of the images"),
)  # fmt: skip
UP_ONLY = (
    Variable(
        "INTERLOCK_START_LIMIT_S", "900", "that each part may take to be ready once what it needs "
        "is; then it is started again, three times at most; 0: any time", "s",
    ),
    *(
        Variable(variable_of(name), str(port), f"port of {name.replace('_', ' ')}; must be free")
        for name, port in USUAL_PORTS.items()
    ),
    Variable("INTERLOCK_POSTGRES_BIN", "", "directory of initdb and postgres", "path"),
    Variable("INTERLOCK_REDIS_SERVER", "", "the Redis or Valkey server", "path"),
    Variable("INTERLOCK_PYTHON", "", "the Python that ./run makes .venv with", "path"),
    Variable("NO_COLOR", "", "any value: no colours"),
)  # fmt: skip
CLI = (
    Variable("INTERLOCK_URL", "http://127.0.0.1:8000", "the control plane", "URL"),
    Variable("INTERLOCK_TOKEN", "", "API token of a person or of CI", is_secret=True),
)
# Compose logs in to MLflow with a name and a password.
NOT_IN_COMPOSE = frozenset(("MLFLOW_TRACKING_TOKEN",))
_FIXED_BEFORE = "  # Settings with a default; made by ./run settings."
_FIXED_AFTER = "  # End of settings."
_TABLE = re.compile(r"<!-- settings: (.*?) -->\n.*?<!-- end of settings -->", re.DOTALL)


def control_plane() -> list[Variable]:
    """Return what the control plane's settings declare."""
    env = importlib.import_module("controlplane.env")
    if not env.DECLARED:
        os.environ.setdefault("INTERLOCK_SECRET_KEY", secrets.token_urlsafe(48))
        importlib.import_module("controlplane.settings")
    return list(env.DECLARED.values())


def sections() -> dict[str, list[Variable]]:
    """Return all variables by who reads them."""
    return {
        "Data plane": config.variables(),
        "Control plane": control_plane(),
        "docker-compose.yml": list(COMPOSE_ONLY),
        "./run": list(UP_ONLY),
        "Command line": list(CLI),
    }


def rendered() -> Iterator[tuple[Path, str]]:
    """Give each file that shows settings, and what it has to contain."""
    compose = _compose(COMPOSE.read_text())
    yield COMPOSE, compose
    yield ROOT / ".env.example", _example(compose)
    yield ROOT / "docs" / "settings.md", _reference()
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text()
        if path.name != "settings.md" and _TABLE.search(text):
            yield path, _TABLE.sub(_block, text)


def _reference() -> str:
    parts = [
        "# Settings",
        "",
        "Every environment variable of Interlock. `./run up` needs none of them: it generates or "
        "finds them all.",
        f"This page is made by `{COMMAND}` from where each setting is declared: "
        "`dataplane/config.py` and",
        "`controlplane/settings.py`.",
    ]
    for title, variables in sections().items():
        parts += ["", f"## {title}", "", *_rows(variables)]
    return "\n".join(parts) + "\n"


def _rows(variables: Iterable[Variable]) -> list[str]:
    rows = ["| variable | default | unit | meaning |", "| --- | --- | --- | --- |"]
    for each in variables:
        default = "required" if each.is_required else f"`{each.default}`" if each.default else ""
        meaning = each.help.replace("|", "\\|")
        rows.append(f"| `{each.name}` | {default} | {each.unit} | {meaning} |")
    return rows


def _block(match: re.Match[str]) -> str:
    by_name = {each.name: each for variables in sections().values() for each in variables}
    names = match[1].split()
    is_whole = match[1] == "data plane"
    chosen = config.variables() if is_whole else [by_name[name] for name in names]
    table = "\n".join(_rows(chosen))
    return f"<!-- settings: {match[1]} -->\n{table}\n<!-- end of settings -->"


def _compose(text: str) -> str:
    """Return docker-compose.yml with a line for each setting that no line of a person names."""
    for opening, variables in (
        ("x-control-environment: &control-environment\n", control_plane()),
        ("  dataplane:\n", config.variables()),
    ):
        start = text.index(opening)
        before = text.index(_FIXED_BEFORE.strip(), start)
        after = text.index(_FIXED_AFTER.strip(), before)
        indent = text[text.rindex("\n", 0, before) + 1 : before]
        head = text[start:before]
        lines = [
            f"{indent}{each.name}: ${{{each.name}:-}}\n"
            for each in variables
            if not each.is_required
            and each.name not in NOT_IN_COMPOSE
            and not re.search(rf"^\s+{each.name}:", head, re.MULTILINE)
            and not each.name.startswith("INTERLOCK_ADMIN_")
        ]
        first = text.index("\n", before) + 1
        last = text.rindex("\n", 0, after) + 1
        text = text[:first] + "".join(lines) + text[last:]
    return text


def _example(compose: str) -> str:
    required = set(re.findall(r"\$\{([A-Z_]+):\?", compose))
    defaults = dict(re.findall(r"\$\{([A-Z_]+):-([^}]+)\}", compose))
    parts = [
        "# Every setting of Interlock. `./run up` needs none: it generates or finds them all.",
        "# For docker-compose.yml copy this file to .env and give a value to those marked REQUIRED",
        "# (at least 32 random characters; shorter and well-known ones stop the start;",
        "# python3 -c 'import secrets; print(secrets.token_urlsafe(48))' makes a good one).",
        f"# Made by {COMMAND} from where each setting is declared.",
    ]
    shown: set[str] = set()
    for title, variables in sections().items():
        parts += ["", f"# --- {title} ".ljust(100, "-")]
        for each in variables:
            if each.name not in shown:
                shown.add(each.name)
                parts += _entry(each, each.name in required, defaults.get(each.name, ""))
    return "\n".join(parts) + "\n"


def _entry(variable: Variable, is_required: bool, in_compose: str) -> list[str]:
    help = f"{variable.unit}: {variable.help}" if variable.unit else variable.help
    if is_required:
        help = f"REQUIRED for compose. {help}"
    elif in_compose and in_compose != variable.default:
        help = f"{help} (docker-compose.yml: {in_compose})"
    lines = [f"# {line}" for line in textwrap.wrap(f"{help[0].upper()}{help[1:]}.", 96)]
    is_plain = re.fullmatch(r"[\w.:/,@*-]*", variable.default)
    value = variable.default if is_plain else ""
    return [*lines, f"{variable.name}=" if is_required else f"#{variable.name}={value}"]


def main() -> int:
    """Write every file that is not as it has to be."""
    for path, text in rendered():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
