"""Streams uploaded files to disk beside the artifacts, and stops at the limit.

Only who may send a file is listened to: the API parses a body after it knew the caller, and of the
pages those that `UPLOAD_PAGES` names take files, from those who are logged in.
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
# What a form has beside the file; a body that announces more than both is not read at all.
FORM_BYTES_MAX = 4 * 1024**2


class UploadedArtifact(TemporaryUploadedFile):
    """A temporary file beside the artifacts, so that keeping it is a rename."""

    def __init__(self, name: str | None, content_type: str | None, size: int, *extra: Any) -> None:
        directory = settings.ARTIFACT_DIR / UPLOADS
        directory.mkdir(parents=True, exist_ok=True)
        file = tempfile.NamedTemporaryFile(dir=directory)  # noqa: SIM115  Closed by the request.
        UploadedFile.__init__(self, file, name, content_type, size, *extra)


class ArtifactUploadHandler(TemporaryFileUploadHandler):
    """Django's handler of files on disk, with a bound on all files of a request together."""

    def handle_raw_input(
        self,
        input_data: Any,
        META: dict[str, str],  # noqa: N803
        content_length: int,
        boundary: str,
        encoding: str | None = None,
    ) -> None:
        self.left = settings.ARTIFACT_BYTES_MAX if _may_send(self.request) else 0
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
        # Django swallows this and shows the view what came before; `check_upload` tells it why.
        self.request.is_upload_too_large = True  # type: ignore[union-attr]
        raise StopUpload(connection_reset=True)


def _may_send(request: HttpRequest | None) -> bool:
    if request is None:
        return False
    if request.path.startswith(API_PREFIX):
        return True
    pages = {reverse(name) for name in settings.UPLOAD_PAGES}
    return request.path in pages and request.user.is_authenticated


def uploaded_files(*files: TemporaryUploadedFile | None) -> list[tuple[str, Path]]:
    """Return name and path of each file that there is."""
    return [(f.name or "", Path(f.temporary_file_path())) for f in files if f is not None]


def check_upload(request: HttpRequest) -> None:
    """Raise TooLarge when the request's file was cut off. Call it after the form was read."""
    if getattr(request, "is_upload_too_large", False):
        raise too_large()
