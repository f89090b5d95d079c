"""Streams uploaded files to disk, next to the artifacts, up to the size limit.

Unauthenticated uploads are refused: the API parses a body after authentication, and among the pages
only `UPLOAD_PAGES` accept files, from users who are logged in.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.core.files.uploadhandler import (
    FileUploadHandler,
    StopUpload,
    TemporaryFileUploadHandler,
)
from django.http import HttpRequest
from django.urls import reverse

from apps.models.sources import too_large
from apps.models.versions import UPLOADS

API_PREFIX = "/api/"
# The maximum size of a form besides its files; a body with a larger Content-Length is not read.
FORM_BYTES_MAX = 4 * 1024**2


class UploadedArtifact(TemporaryUploadedFile):
    """A temporary file on the file system of the artifacts, so that a rename stores it."""

    def __init__(self, name: str | None, content_type: str | None, size: int, *extra: Any) -> None:
        directory = settings.ARTIFACT_DIR / UPLOADS
        directory.mkdir(parents=True, exist_ok=True)
        file = tempfile.NamedTemporaryFile(dir=directory)  # noqa: SIM115  Closed by the request.
        UploadedFile.__init__(self, file, name, content_type, size, *extra)


class ArtifactUploadHandler(TemporaryFileUploadHandler):
    """Django's temporary file handler with a limit on the total size of a request's files."""

    def handle_raw_input(
        self,
        input_data: Any,
        META: dict[str, str],  # noqa: N803
        content_length: int,
        boundary: str,
        encoding: str | None = None,
    ) -> None:
        self.left = settings.ARTIFACT_BYTES_MAX if _may_upload(self.request) else 0
        self.announced = content_length

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        if not self.left or self.announced > self.left + FORM_BYTES_MAX:
            self._stop()
        FileUploadHandler.new_file(self, *args, **kwargs)
        self.file = UploadedArtifact(
            self.file_name, self.content_type, 0, self.charset, self.content_type_extra
        )

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        self.left -= len(raw_data)
        if self.left < 0:
            self._stop()
        super().receive_data_chunk(raw_data, start)

    def _stop(self) -> None:
        # Django hides StopUpload and passes a truncated form to the view; see `check_upload`.
        self.request.is_upload_too_large = True  # type: ignore[union-attr]
        raise StopUpload(connection_reset=True)


def _may_upload(request: HttpRequest | None) -> bool:
    if request is None:
        return False
    if request.path.startswith(API_PREFIX):
        return True
    pages = {reverse(name) for name in settings.UPLOAD_PAGES}
    return request.path in pages and request.user.is_authenticated


def uploaded_files(*files: TemporaryUploadedFile | None) -> list[tuple[str, Path]]:
    """Return name and path of each uploaded file."""
    return [(f.name or "", Path(f.temporary_file_path())) for f in files if f is not None]


def check_upload(request: HttpRequest) -> None:
    """Raise TooLarge if an upload was stopped at the limit. Call it after parsing the form."""
    if getattr(request, "is_upload_too_large", False):
        raise too_large()
