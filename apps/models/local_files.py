"""Copies files of this machine that a URI or a foreign registry names: from below one directory.

Links are followed before the check, so that what counts is where the bytes are; each file is opened
once, checked as opened and read within the bound, whatever size it says it has.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import SplitResult, unquote

from apps.lib.errors import Invalid, NotFound, TooLarge

FILES_MAX = 1_000
CHUNK_BYTES = 1 << 20
# Not files, whatever they look like.
KERNEL = tuple(Path(name) for name in ("/proc", "/sys", "/dev"))


def local_path(parts: SplitResult) -> Path:
    """Return the path of a `file:` URI or a bare path. Raises Invalid for one with anything more.

    A path is cut by a parser at `?` and `#`, and a registry appends to it: what was asked for and
    what would be read are then two things.
    """
    path = unquote(parts.path)
    if parts.query or parts.fragment or parts.netloc not in {"", "localhost"}:
        raise Invalid(f"{parts.geturl()!r} is more than the path of a local file")
    if not path.startswith("/") or not path.isprintable() or ".." in path.split("/"):
        raise Invalid(f"{parts.geturl()!r} is not a plain absolute path")
    return Path(path)


def copy_files(path: Path, root: Path, directory: Path, bytes_max: int) -> None:
    """Copy the file `path`, or the files directly in it, into `directory`.

    Raises:
        Invalid: it, or a file in it, is not below `root` once links are followed, or is no file.
        NotFound: there is nothing.
        TooLarge: there is more than `bytes_max`.
    """
    try:
        root = root.resolve(strict=True)
        source = path.resolve(strict=True)
        _check_place(source, root)
        files = [source]
        if source.is_dir():
            files = sorted(item for item in source.iterdir() if not item.is_dir())
        if len(files) > FILES_MAX:
            raise Invalid(f"{path} has {len(files)} files; at most {FILES_MAX}")
        left = bytes_max
        for item in files:
            name = path.name if item == source else item.name
            left -= _copy(item, root, directory / name, left)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {error.filename or path}") from error
    except (OSError, RuntimeError, ValueError) as error:
        # A loop of links, no permission, a name that no system has.
        raise Invalid(f"{path} cannot be read: {error}") from error


def _check_place(path: Path, root: Path) -> None:
    if not path.is_relative_to(root) or any(path.is_relative_to(place) for place in KERNEL):
        raise Invalid(f"{path} is not below {root}, where it may be")


def _copy(item: Path, root: Path, target: Path, bytes_max: int) -> int:
    resolved = item.resolve(strict=True)
    _check_place(resolved, root)
    # A link that took its place since is not followed, and a pipe does not wait for a writer.
    descriptor = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as source:
        _check_place(Path(f"/proc/self/fd/{descriptor}").resolve(), root)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Invalid(f"{item} is not a regular file")
        size = 0
        with target.open("wb") as file:
            while chunk := source.read(CHUNK_BYTES):
                size += len(chunk)
                if size > bytes_max:
                    raise TooLarge(f"{item.name} is larger than the limit")
                file.write(chunk)
    return size
