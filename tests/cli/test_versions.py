"""`interlock register` and `alias`: requests; a number is printed alone on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli import main as cli
from cli.client import Client

REGISTRATION = {
    "id": "r", "is_settled": True, "state": "registered", "stage": "", "version": 7, "error": None,
}  # fmt: skip
ALIAS = {"name": "candidate", "version": 7, "is_pending": True}


class Server:
    """Responds with `answer` and records the requests."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answer: Any = REGISTRATION
        self.fails = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        if len(self.requests) <= self.fails:
            raise httpx.ReadError("reset", request=request)
        return httpx.Response(201, json=self.answer)

    @property
    def body(self) -> Any:
        return json.loads(self.requests[-1].content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    server = Server()
    transport = httpx.MockTransport(server)
    monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
    return server


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"onnx-bytes")
    return str(path)


def test_a_uri_is_registered_with_its_metadata(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--uri", "runs:/r/net", "--metric", "accuracy=0.97", "--metric", "loss=1e-3"]
    words += ["--param", "C=1=2", "--tag", "v1.2.3", "--dataset-digest", "5f1c"]
    assert cli.main(["register", "digits", *words]) == 0
    assert capsys.readouterr().out == "7\n"
    assert server.requests[0].url.path == "/api/v1/models/digits/versions/"
    assert server.body == {
        "uri": "runs:/r/net",
        "metrics": {"accuracy": 0.97, "loss": 0.001},
        "parameters": {"C": "1=2"},
        "semantic_tag": "v1.2.3",
        "dataset_digest": "5f1c",
    }


def test_a_file_is_uploaded_behind_its_metadata(server: Server, file: str, tmp_path: Path) -> None:
    warmup = tmp_path / "warmup.json"
    warmup.write_text("[[]]")
    words = ["--file", file, "--metric", "accuracy=0.97", "--warmup", str(warmup)]
    assert cli.main(["--json", "register", "digits", *words]) == 0
    [request] = server.requests
    assert request.headers["Content-Type"].startswith("multipart/form-data")
    content = request.content
    assert b'name="metrics"\r\n\r\n{"accuracy": 0.97}\r\n' in content
    assert b'name="warmup"\r\n\r\n[[]]\r\n' in content
    assert content.index(b'name="metrics"') < content.index(b'filename="net.onnx"')
    assert b"onnx-bytes" in content


def test_an_upload_is_sent_again_after_a_broken_connection(server: Server, file: str) -> None:
    server.fails = 1
    assert cli.main(["register", "digits", "--file", file]) == 0
    first, again = server.requests
    assert first.headers["Idempotency-Key"] == again.headers["Idempotency-Key"]
    assert b"onnx-bytes" in again.content


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--file", "/nowhere/net.onnx"], "file not found: /nowhere/net.onnx"),
        (["--uri", "x:/y", "--metric", "accuracy"], "--metric takes NAME=VALUE"),
        (["--uri", "x:/y", "--metric", "accuracy=high"], "not a number"),
        (["--uri", "x:/y", "--param", "=1"], "--param takes NAME=VALUE"),
        (["--uri", "x:/y", "--warmup", "/nowhere"], "--warmup: /nowhere cannot be read"),
    ],
)
def test_invalid_arguments_exit_2(
    server: Server, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["register", "digits", *words]) == 2
    assert message in capsys.readouterr().err
    assert not server.requests


def test_it_waits_for_the_registration_and_prints_the_stage(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = {**REGISTRATION, "is_settled": False, "stage": "inspecting the file"}
    answers = iter([waiting, waiting, REGISTRATION])
    monkeypatch.setattr("cli.versions.POLL_S", 0)
    monkeypatch.setattr(Server, "answer", property(lambda _: next(answers)), raising=False)
    assert cli.main(["register", "digits", "--uri", "x:/y"]) == 0
    assert [r.url.path for r in server.requests[1:]] == ["/api/v1/registrations/r/"] * 2
    out = capsys.readouterr()
    assert (out.out, out.err) == ("7\n", "interlock: inspecting the file\n")


def test_a_refusal_exits_2_with_the_reason_and_a_timeout_4(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = {**REGISTRATION, "error": {"code": "invalid", "message": "it spins"}}
    assert cli.main(["register", "digits", "--uri", "x:/y"]) == 2
    assert "it spins" in capsys.readouterr().err
    server.answer = {**REGISTRATION, "is_settled": False, "stage": "waiting"}
    assert cli.main(["register", "digits", "--uri", "x:/y", "--timeout", "0"]) == 4


def test_a_file_or_a_uri_is_required(server: Server, file: str) -> None:
    for words in ([], ["--file", file, "--uri", "x:/y"]):
        with pytest.raises(SystemExit):
            cli.main(["register", "digits", *words])


def test_an_alias_is_moved(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = ALIAS
    assert cli.main(["alias", "digits", "candidate", "7"]) == 0
    request = server.requests[0]
    assert (request.method, server.body) == ("PUT", {"version": 7})
    assert request.url.path == "/api/v1/models/digits/aliases/candidate/"
    assert "names version 7; not yet written to MLflow" in capsys.readouterr().out


def test_an_alias_is_deleted(server: Server) -> None:
    assert cli.main(["alias", "digits", "candidate", "--delete"]) == 0
    assert server.requests[0].method == "DELETE"
    assert cli.main(["alias", "digits", "candidate"]) == 2
