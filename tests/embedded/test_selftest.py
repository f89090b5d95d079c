"""The self-test with the real Triton, and with a server that corrupts inputs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embedded import selftest
from embedded.stack import running


class Corrupting(BaseHTTPRequestHandler):
    """Responds to every inference with zeros, and to all other requests with success."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        document: object = {}
        if self.path.endswith("/infer"):
            shape = [selftest.ROWS, selftest.COLUMNS]
            document = {"outputs": [{"shape": shape, "data": [0.0] * shape[0] * shape[1]}]}
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def corrupting_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Corrupting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_real_triton_agrees_with_onnx_runtime(tmp_path: Path) -> None:
    with running(tmp_path, only={"triton"}) as stack:
        repository = tmp_path / "triton" / "repository"

        selftest.check(repository, stack.urls.triton, stack.triton_token)

    assert list(repository.iterdir()) == []


def test_silently_wrong_predictions_are_detected(tmp_path: Path, corrupting_server: str) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()

    with pytest.raises(selftest.SelfTestFailed, match="differ from ONNX Runtime's in 64 rows"):
        selftest.check(repository, corrupting_server)
