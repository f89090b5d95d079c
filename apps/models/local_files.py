"""Copies local files that a URI or MLflow names, only from below one directory.

Links are resolved before the check, so the real location counts. Each file is opened once, checked
after opening, and read up to the limit, whatever size it reports.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import SplitResult, unquote

from apps.lib.errors import Invalid, NotFound, TooLarge

FILES_MAX = 1_000
CHUNK_BYTES = 1 << 20
# Pseudo file systems of the kernel.
KERNEL = tuple(Path(name) for name in ("/proc", "/sys", "/dev"))


def local_path(parts: SplitResult) -> Path:
    """Return the path of a `file:` URI or a bare path. Raises Invalid for a query or fragment.

    A parser cuts the path at `?` and `#`, and MLflow appends to it: the path that was checked and
    the path that is read would differ.
    """
    path = unquote(parts.path)
    if parts.query or parts.fragment or parts.netloc not in {"", "localhost"}:
        raise Invalid(f"{parts.geturl()!r} is not the plain path of a local file")
    if not path.startswith("/") or not path.isprintable() or ".." in path.split("/"):
        raise Invalid(f"{parts.geturl()!r} is not a plain absolute path")
    return Path(path)


def copy_files(path: Path, root: Path, directory: Path, bytes_max: int) -> None:
    """Copy the file `path`, or the files directly in it, into `directory`.

    Raises:
        Invalid: it, or a file in it, is not below `root` after resolving links, or is not a file.
        NotFound: it does not exist.
        TooLarge: the files have more than `bytes_max`.
    """
    try:
        root = root.resolve(strict=True)
        source = path.resolve(strict=True)
        _check_location(source, root)
        files = [source]
        if source.is_dir():
            files = sorted(item for item in source.iterdir() if not item.is_dir())
        if len(files) > FILES_MAX:
            raise Invalid(f"{path} has {len(files)} files; the maximum is {FILES_MAX}")
        left = bytes_max
        for item in files:
            name = path.name if item == source else item.name
            left -= _copy(item, root, directory / name, left)
    except FileNotFoundError as error:
        raise NotFound(f"{error.filename or path} does not exist") from error
    except (OSError, RuntimeError, ValueError) as error:
        # A loop of links, no permission, or a malformed name.
        raise Invalid(f"{path} cannot be read: {error}") from error


def _check_location(path: Path, root: Path) -> None:
    if not path.is_relative_to(root) or any(path.is_relative_to(place) for place in KERNEL):
        raise Invalid(f"{path} is not below {root}")


def _copy(item: Path, root: Path, target: Path, bytes_max: int) -> int:
    resolved = item.resolve(strict=True)
    _check_location(resolved, root)
    # O_NOFOLLOW: a link that replaced the file is refused. O_NONBLOCK: a pipe does not block.
    descriptor = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as source:
        _check_location(Path(f"/proc/self/fd/{descriptor}").resolve(), root)
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
