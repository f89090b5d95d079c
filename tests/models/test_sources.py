"""Allowed URIs of models; all others are refused with the setting that allows them."""

from __future__ import annotations

import functools
import http.server
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.lib.errors import Invalid, NotFound, TooLarge, Unavailable
from apps.models.sources import Reference, fetch_model, find_onnx, read_reference
from tests.models.registries import Mlflow
from tests.models.test_artifacts import save


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "fetched"
    directory.mkdir()
    return directory


@pytest.fixture
def shared(tmp_path: Path, settings: Any) -> Path:
    """The directory for file: URIs."""
    directory = tmp_path / "shared"
    directory.mkdir()
    settings.REGISTER_DIR = str(directory)
    return directory


@pytest.mark.parametrize(
    ("uri", "reference"),
    [
        ("models:/digits/3", Reference("digits", "3")),
        ("models:/digits@candidate", Reference("digits", "candidate")),
        ("models:/m-0f1e", None),
        ("runs:/digits/3", None),
    ],
)
def test_a_reference_to_a_registered_version_is_read(uri: str, reference: Reference | None) -> None:
    assert read_reference(uri) == reference


@pytest.mark.parametrize(
    ("uri", "run_id"),
    [
        ("models:/digits/2", "r"),
        ("models:/m-1", "r"),
        ("runs:/r/net", "r"),
        ("runs:/r/elsewhere", "r"),
        ("mlflow-artifacts:/1/m-1", ""),
    ],
)
def test_models_of_mlflow_are_fetched(mlflow: Mlflow, place: Path, uri: str, run_id: str) -> None:
    assert fetch_model(uri, place) == run_id
    assert find_onnx(place).read_bytes() == mlflow.files["model.onnx"]


def test_one_onnx_file_of_mlflow_is_fetched_alone(mlflow: Mlflow, place: Path) -> None:
    fetch_model("mlflow-artifacts:/1/r/artifacts/model.onnx", place)
    assert [path.name for path in place.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://bucket/model.onnx", "expected one of models:, runs:"),
        ("model.onnx", "unknown scheme in 'model.onnx'"),
        ("https://[::1/m.onnx", "is not a valid URI"),
        ("file:/a\nb", "is not a valid URI"),
        ("models:/digits", "expected models:/NAME/NUMBER"),
        ("runs:/r", "not of the form runs:/RUN_ID/PATH"),
        ("runs:/r/a/../../b", "not of the form runs:/RUN_ID/PATH"),
        ("mlflow-artifacts://elsewhere/1/m", "names a server"),
        ("file:/etc/passwd", "set INTERLOCK_REGISTER_DIR"),
        ("https://example.com/m.onnx", "set INTERLOCK_REGISTER_HOSTS"),
    ],
)
def test_a_uri_that_is_not_allowed_is_refused(place: Path, uri: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        fetch_model(uri, place)


def test_files_below_the_directory_are_fetched(shared: Path, place: Path) -> None:
    save(shared / "net.onnx", ["N", 4])
    fetch_model(f"file:{shared}/net.onnx", place)
    fetch_model(f"file://{shared}", place)
    assert find_onnx(place).name == "net.onnx"


def test_a_path_out_of_the_directory_is_refused(shared: Path, place: Path, tmp_path: Path) -> None:
    outside = save(tmp_path / "outside.onnx", ["N", 4])
    (shared / "link.onnx").symlink_to(outside)
    for uri in (
        f"file:{shared}/../outside.onnx",
        f"file:{shared}/%2e%2e/outside.onnx",
        f"file:{shared}/link.onnx",
        f"file:{shared}",
        f"file://elsewhere{shared}",
    ):
        with pytest.raises(Invalid, match="INTERLOCK_REGISTER_DIR"):
            fetch_model(uri, place)
    assert not any(place.iterdir())


def test_a_missing_or_too_large_file_is_reported(shared: Path, place: Path, settings: Any) -> None:
    with pytest.raises(NotFound):
        fetch_model(f"file:{shared}/net.onnx", place)
    save(shared / "net.onnx", ["N", 4])
    settings.ARTIFACT_BYTES_MAX = 100
    with pytest.raises(TooLarge, match="larger than 100 bytes"):
        fetch_model(f"file:{shared}/net.onnx", place)


def test_exactly_one_onnx_file_is_required(place: Path) -> None:
    with pytest.raises(Invalid, match="found: none"):
        find_onnx(place)
    for name in ("a.onnx", "b.onnx"):
        save(place / name, ["N", 4])
    with pytest.raises(Invalid, match=r"found: a\.onnx, b\.onnx"):
        find_onnx(place)


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "https://169.254.169.254/")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[str]:
    """A real HTTPS server whose host is listed; it has net.onnx."""
    root = tmp_path / "served"
    root.mkdir()
    save(root / "net.onnx", ["N", 4])
    pem = tmp_path / "pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext"
    argv = [*command.split(), "subjectAltName=DNS:localhost", "-keyout", pem, "-out", f"{pem}.crt"]
    subprocess.run(argv, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", f"{pem}.crt")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=os.fspath(root))
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{pem}.crt", pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"localhost:{server.server_port}"
    settings.REGISTER_HOSTS = [host]
    yield f"https://{host}"
    server.shutdown()
    server.server_close()


def test_a_listed_host_is_read(https: str, place: Path) -> None:
    fetch_model(f"{https}/net.onnx", place)
    assert find_onnx(place).stat().st_size > 16_000


def test_errors_of_a_listed_host_are_reported(https: str, place: Path, settings: Any) -> None:
    with pytest.raises(NotFound, match="returned HTTP 404"):
        fetch_model(f"{https}/none.onnx", place)
    with pytest.raises(Invalid, match="redirects are not followed: https://169"):
        fetch_model(f"{https}/moved", place)
    settings.ARTIFACT_BYTES_MAX = 1_000
    with pytest.raises(TooLarge):
        fetch_model(f"{https}/net.onnx", place)


def test_other_hosts_and_ports_are_refused(https: str, place: Path, settings: Any) -> None:
    for uri in ("https://localhost/net.onnx", f"https://localhost@evil.example/{https}"):
        with pytest.raises(Invalid, match="is not in INTERLOCK_REGISTER_HOSTS"):
            fetch_model(uri, place)
    settings.REGISTER_HOSTS = ["localhost:1"]
    with pytest.raises(Unavailable):
        fetch_model("https://localhost:1/net.onnx", place)
