"""The real server; its start and a load take less than a second each."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

import httpx
import pytest

from embedded import selftest, triton
from embedded.part import MissingComponent
from embedded.stack import running


def test_a_missing_server_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingComponent, match=r"Triton server(.|\n)*uv sync --extra triton"):
        triton.find_package()


def test_a_missing_libpython_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: "/nowhere")
    monkeypatch.setattr(triton, "LIBPYTHON", "libpython9.9.so.1.0")

    with pytest.raises(MissingComponent, match=r"apt-get install libpython9\.9"):
        triton.find_libpython()


def test_the_stub_uses_this_python(tmp_path: Path) -> None:
    ports = {"triton_http": 1, "triton_grpc": 2, "triton_metrics": 3}

    part = triton.Triton(tmp_path, ports, "t").part({"PATH": "/usr/bin"})

    assert part.env["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    assert "nvidia_pytriton.libs" in part.env["LD_LIBRARY_PATH"]


def test_the_shared_memory_of_a_killed_server_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "SHARED_MEMORY", tmp_path)
    server = triton.Triton(tmp_path / "triton", {}, "t")
    left, foreign = tmp_path / f"{server.shared_memory_prefix}1", tmp_path / "interlock_else_1"
    left.touch()
    foreign.touch()

    server.prepare(triton.find_package())

    assert not left.exists()
    assert foreign.exists()
    assert os.access(server.backends / "python" / "triton_python_backend_stub", os.X_OK)


def test_a_started_server_serves_its_repository_without_broken_models(
    tmp_path: Path,
) -> None:
    repository = tmp_path / "triton" / "repository"
    repository.mkdir(parents=True)
    model = selftest.write_model(repository, selftest.make_onnx())
    broken = repository / "broken"
    broken.mkdir()
    (broken / "config.pbtxt").write_text((model / "config.pbtxt").read_text())

    with running(tmp_path, only={"triton"}) as stack:
        token = {triton.CONTROL_HEADER: stack.triton_token}
        index = httpx.post(f"{stack.urls.triton}/v2/repository/index", headers=token).json()

    states = {entry["name"]: entry.get("state") for entry in index}
    assert states[selftest.MODEL] == "READY"
    assert states["broken"] != "READY"
