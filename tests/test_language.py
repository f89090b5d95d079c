"""Tests that code and documents use plain technical English: rejected words and names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Participles and verbs that are not allowed as the name of a value: use a noun.
NAMES = frozenset(
    ("told", "found", "asked", "seen", "made", "given", "said", "brought", "wanted", "gone")
)
# Words and phrases, each with its replacement; docs/glossary.md has all terms.
REJECTED = {
    r"told": "reason, event, summary or help; as a verb: report, notify, record",
    r"anew": "again, from scratch",
    r"so many": "a number with its unit, or: the maximum number of",
    r"(is|are) none of": "unknown …; expected one of …",
    r"is no (instant|date|number|name|whole number|JSON)": "is not a valid …",
    r"nobody's concern": "the allowed margin",
    r"lodging": "spool directory",
    r"strangers?": "unexposed units; an unauthenticated client",
    r"crowds?": "unit sketch",
    r"whoever": "a noun",
    r"of late": "recently, in the last …",
    r"what (is|was|were|are) (told|asked|said|seen|found|made|given)": "a noun",
}  # fmt: skip
PROSE = re.compile(rf"\b({'|'.join(REJECTED)})\b", re.IGNORECASE)
TEXTS = (".py", ".html", ".md", ".js", ".yml", ".toml")
# Decisions and the change log are not rewritten.
HISTORY = ("docs/adr/", "CHANGELOG.md", "apps/*/migrations/")
# The last cell of its rows lists rejected words.
GLOSSARY = "docs/glossary.md"


def files(*where: str) -> Iterator[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *where]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in sorted(listed.split()):
        path = ROOT / name
        history = name.startswith(HISTORY[:2]) or "/migrations/" in name
        if path.is_file() and path.suffix in TEXTS and not history and path != Path(__file__):
            yield path


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of each value, parameter, attribute and function in the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def faults(*where: str) -> Iterator[str]:
    for path in files(*where):
        text, name = path.read_text(), path.relative_to(ROOT)
        for number, line in enumerate(text.split("\n"), 1):
            prose = line[:-2].rpartition(" | ")[0] if f"{name}" == GLOSSARY else line
            for match in PROSE.finditer(prose):
                yield f"{name}:{number}: {match.group()!r}"
        if path.suffix == ".py":
            for number, word in names(ast.parse(text)):
                if word.strip("_") in NAMES:
                    yield f"{name}:{number}: name {word!r}"


def test_no_rejected_word_is_left() -> None:
    assert list(faults()) == []


if __name__ == "__main__":
    sys.stdout.writelines(f"{fault}\n" for fault in faults(*sys.argv[1:]))
