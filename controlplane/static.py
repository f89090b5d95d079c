"""Serves static files directly from their packages: hashed, compressed and cached.

The name of a file on a page contains the hash of its content, so a browser can cache it for ever.
Files are found, hashed and compressed at the first request: `collectstatic` is not needed, and
memory holds only files that pages use.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2s
from io import BytesIO
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles import finders
from django.contrib.staticfiles.storage import StaticFilesStorage
from django.http import HttpRequest
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.responders import Response, StaticFile

# Smaller files are not worth a second copy in memory; images and fonts are compressed already.
COMPRESSED_BYTES_MIN = 500
COMPRESSED = {".js", ".css", ".svg", ".json", ".html", ".txt", ".map"}
HASHED = re.compile(r"\.[0-9a-f]{12}(?=\.[^./]+$)")


def find(name: str) -> str | None:
    """Return the path of the static file `name`, or None if it does not exist."""
    path = finders.find(name)
    return path if isinstance(path, str) and Path(path).is_file() else None


@lru_cache(maxsize=1_000)
def _digest(path: str, modified_ns: int) -> str:
    return blake2s(Path(path).read_bytes(), digest_size=6).hexdigest()


def hashed(name: str) -> str:
    """Insert the hash of the file's content before the suffix of `name`, if the file exists."""
    path = _path_of(name)
    if path is None:
        return name
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.{_digest(path, _modified_ns(path))}.{suffix}" if dot else name


def _modified_ns(path: str) -> int:
    return Path(path).stat().st_mtime_ns


@lru_cache(maxsize=1_000)
def _path_of(name: str) -> str | None:
    return find(name)


class HashedStorage(StaticFilesStorage):
    """A storage whose URLs contain the hash of `hashed`."""

    def url(self, name: str | None) -> str:
        return super().url(hashed(name) if name else name)


class CompressedFile(StaticFile):  # type: ignore[misc]
    """A file with a gzip copy in memory, served to clients that accept it."""

    def __init__(self, path: str, headers: Any, packed: bytes) -> None:
        super().__init__(path, [*headers, ("Vary", "Accept-Encoding")])
        self.packed = packed
        plain = dict(self.alternatives[0][2])
        self.packed_headers = [
            *(plain | {"Content-Length": str(len(packed)), "Content-Encoding": "gzip"}).items()
        ]

    def get_response(self, method: str, request_headers: Any) -> Response:
        plain = super().get_response(method, request_headers)
        gzip_ok = re.search(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", _accepted(request_headers))
        if not gzip_ok or plain.status != 200:
            return plain
        if plain.file is not None:
            plain.file.close()
        body = BytesIO(self.packed) if method != "HEAD" else None
        return Response(plain.status, self.packed_headers, body)


def _accepted(request_headers: Any) -> str:
    return str(request_headers.get("HTTP_ACCEPT_ENCODING", ""))


class StaticMiddleware(WhiteNoiseMiddleware):  # type: ignore[misc]
    """Serves static files; a URL with a wrong hash gets the current file and a short cache time."""

    def __call__(self, request: HttpRequest) -> Any:
        url = request.path_info
        if not url.startswith(self.static_prefix):
            return self.get_response(request)
        static_file = self.files.get(url) or self.find_file(url)
        if static_file is None:
            return self.get_response(request)
        if self._has_current_hash(url):
            # Only names that pages use are cached: the number of other names is unlimited.
            self.files[url] = static_file
        return self.serve(static_file, request)

    def _has_current_hash(self, url: str) -> bool:
        return not settings.DEBUG and self.immutable_file_test("", url)

    def candidate_paths_for_url(self, url: str) -> Iterator[str]:
        name = url[len(self.static_prefix) :]
        for each in (name, self.get_name_without_hash(name)):
            if path := find(each):
                yield path

    def get_name_without_hash(self, filename: str) -> str:
        return HASHED.sub("", filename)

    def get_static_file(self, path: str, url: str, stat_cache: Any = None) -> StaticFile:
        plain = super().get_static_file(path, url, stat_cache)
        if Path(path).suffix not in COMPRESSED or Path(path).stat().st_size < COMPRESSED_BYTES_MIN:
            return plain
        headers = [
            (name, value)
            for name, value in plain.alternatives[0][2]
            if name.lower() not in {"content-length", "vary"}
        ]
        # The compressed bytes are the same after each start, so that proxies' caches stay valid.
        return CompressedFile(path, headers, _packed(path, _modified_ns(path)))


@lru_cache(maxsize=100)
def _packed(path: str, modified_ns: int) -> bytes:
    return gzip.compress(Path(path).read_bytes(), compresslevel=6, mtime=0)
