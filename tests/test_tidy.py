"""Tests of code style: limits of size, and code that must not be committed."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
TEMPLATE_COLUMNS_MAX = 120
TEST_LINES_MAX = 25
PRODUCT = ("apps", "cli", "contract", "controlplane", "dataplane", "embedded")
# Hot-path functions that may be longer, each justified by a benchmark; at most five.
LONGER_ALLOWED: frozenset[str] = frozenset()
# Each word contains a bracket, so that this line does not match itself.
UNFINISHED = re.compile(
    r"\b(TO[D]O|FIXM[E]|XX[X]|NotImplemente[d]Error)\b|mark\.(ski[p]|xfai[l])\b"
)

# A link from a document to a file of this repository, without its anchor.
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]+)")


@cache
def files() -> tuple[Path, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (ROOT / name for name in listed.stdout.split())
    return tuple(p for p in paths if p.is_file() and "migrations" not in p.parts)


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node, (node.end_lineno or node.lineno) - node.lineno + 1


def is_test(path: Path) -> bool:
    return path.relative_to(ROOT).parts[0] == "tests"


def test_no_file_is_longer_than_the_limit() -> None:
    long = {p.relative_to(ROOT): n for p in files() if (n := p.read_text().count("\n")) > 500}
    assert not long, f"more than {FILE_LINES_MAX} lines: {long}"


def test_no_line_of_a_template_is_longer_than_the_limit() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "templates").rglob("*.html"))
        for number, line in enumerate(path.read_text().split("\n"), 1)
        if len(line) > TEMPLATE_COLUMNS_MAX
    ]
    assert not long


def test_no_function_is_longer_than_the_limit() -> None:
    assert len(LONGER_ALLOWED) <= 5
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines}"
        for path, node, lines in functions()
        if lines > FUNCTION_LINES_MAX and node.name not in LONGER_ALLOWED
    ]
    assert not long


def test_no_test_is_longer_than_the_limit() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines}"
        for path, node, lines in functions()
        if is_test(path)
        and node.name.startswith("test_")
        and lines > TEST_LINES_MAX
        and "e2e" not in path.parts
    ]
    assert not long


def test_no_code_is_unfinished_or_disabled() -> None:
    this = Path(__file__)
    matches = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files()
        if path != this
        for match in UNFINISHED.finditer(path.read_text())
    ]
    assert not matches


@pytest.mark.parametrize("reader", ["controlplane", "dataplane"])
def test_one_module_reads_the_environment(reader: str) -> None:
    allowed = {
        "controlplane": {"env.py", "beat.py", "celery.py", "wsgi.py"},
        "dataplane": {"config.py", "__main__.py"},
    }
    matches = [
        path.name
        for path in files()
        if path.relative_to(ROOT).parts[0] == reader and "os.environ" in path.read_text()
    ]
    assert set(matches) <= allowed[reader]


def test_every_package_of_the_product_is_checked_for_its_imports() -> None:
    configuration = (ROOT / "pyproject.toml").read_text()
    line = next(row for row in configuration.splitlines() if row.startswith("root_packages"))
    assert all(f'"{package}"' in line for package in PRODUCT)


def test_every_file_that_a_document_links_to_exists() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "bench" / "README.md"]
    dead = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in documents
        for target in LINK.findall(document.read_text())
        if not (document.parent / target).exists()
    ]
    assert not dead
