"""Local files that a URI names: only from below one directory, after resolving links."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from apps.lib.errors import InterlockError, Invalid, NotFound, TooLarge
from apps.models.local_files import copy_files, local_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_text("secret")
    root = tmp_path / "root"
    (root / "model").mkdir(parents=True)
    (root / "model" / "a").write_text("one")
    (root / "model" / "sub").mkdir()
    return root


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_directory_and_a_file_below_the_root_are_copied(root: Path, place: Path) -> None:
    (root / "model" / "linked").symlink_to(root / "model" / "a")
    copy_files(root / "model", root, place, 100)
    assert names(place) == ["a", "linked"]
    copy_files(root / "model" / "a", root, place, 3)


@pytest.mark.parametrize(
    "outside", ["/proc/self", "/etc", "..", "/dev", "/sys/kernel", "/proc/1/environ"]
)
def test_other_paths_are_refused(root: Path, place: Path, outside: str) -> None:
    with pytest.raises(InterlockError):
        copy_files(root / outside, root, place, 1_000_000)
    assert names(place) == []


def test_files_of_the_kernel_are_refused_below_any_root(place: Path) -> None:
    with pytest.raises(Invalid, match="not below"):
        copy_files(Path("/proc/self/environ"), Path("/"), place, 1_000_000)


@pytest.mark.parametrize("target", ["../outside", "/proc/self/environ", "/etc/passwd", "loop"])
def test_a_link_out_of_the_root_is_refused(root: Path, place: Path, target: str) -> None:
    link = root / "model" / "loop"
    link.symlink_to(root / "model" / target if target == "loop" else target)
    with pytest.raises(InterlockError):
        copy_files(root / "model", root, place, 1_000_000)
    (root / "directory").symlink_to("/etc")
    with pytest.raises(Invalid, match="not below"):
        copy_files(root / "directory" / "passwd", root, place, 1_000_000)


def test_a_pipe_is_refused_without_waiting(root: Path, place: Path) -> None:
    os.mkfifo(root / "model" / "b")
    with pytest.raises(Invalid, match="not a regular file"):
        copy_files(root / "model", root, place, 100)


def test_too_large_or_missing_files_are_reported(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TooLarge):
        copy_files(root / "model", root, place, 2)
    with pytest.raises(NotFound):
        copy_files(root / "none", root, place, 2)
    monkeypatch.setattr("apps.models.local_files.FILES_MAX", 0)
    with pytest.raises(Invalid, match="has 1 files"):
        copy_files(root / "model", root, place, 2)


@pytest.mark.parametrize(
    "uri", ["/a?x=", "/a#x", "file://host/a", "a", "file:a", "/a/../b", "/a/%2e%2e/b", "/a%00b"]
)
def test_only_a_plain_path_is_accepted(uri: str) -> None:
    with pytest.raises(Invalid):
        local_path(urlsplit(uri))


@pytest.mark.parametrize("uri", ["/a b", "file:/a%20b", "file:///a b", "file://localhost/a b"])
def test_a_plain_path_is_accepted(uri: Any) -> None:
    assert local_path(urlsplit(uri)) == Path("/a b")
