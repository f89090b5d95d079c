"""The real Triton server on CPU, from NVIDIA's wheel, with its Python backend.

It runs in explicit mode, in which models are loaded on request. With `--load-model=*` a restarted
server loads all models of its repository again without the control plane.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from embedded.part import MissingComponent, Part
from embedded.probes import http_ok

LIBPYTHON = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
# Triton's APIs that change served models, access memory or write files, and the header that
# authorises them: over HTTP with this name, over gRPC with the prefix `triton-grpc-protocol-`.
RESTRICTED_APIS = "model-repository,shared-memory,trace,logging"
CONTROL_HEADER = "interlock-control"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  Linux's directory; only Triton creates files in it.


def find_package() -> Path:
    """Return the directory of the server in the wheel. Raises MissingComponent."""
    spec = importlib.util.find_spec("pytriton")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent / "tritonserver"
        if (package / "bin" / "tritonserver").exists():
            return package
    raise MissingComponent(
        "The Triton server (wheel nvidia-pytriton, for x86-64 and arm64 Linux)",
        "Run `uv sync --extra triton`.",
    )


def find_libpython() -> str | None:
    """Return the directory of the libpython for the backend's stub; None: the system's.

    Raises:
        MissingComponent: there is no shared libpython.
    """
    directory = sysconfig.get_config_var("LIBDIR")
    if directory and (Path(directory) / LIBPYTHON).exists():
        return str(directory)
    try:
        ctypes.CDLL(LIBPYTHON)
    except OSError:
        package = LIBPYTHON.removesuffix(".so.1.0")
        raise MissingComponent(
            f"{LIBPYTHON} (Triton's Python backend loads it)",
            f"Run `apt-get install {package}`, or create the environment with a Python that was "
            "built with --enable-shared.",
        ) from None
    return None


class Triton:
    """The files and ports of one server, and the token of its control APIs."""

    def __init__(self, directory: Path, ports: Mapping[str, int], token: str) -> None:
        self.directory = directory
        self.repository = directory / "repository"
        self.backends = directory / "backends"
        self.ports = ports
        self.token = token
        # The prefix distinguishes this server's shared memory from that of other servers.
        digest = hashlib.sha256(str(directory).encode()).hexdigest()[:8]
        self.shared_memory_prefix = f"interlock_{digest}_"

    def part(self, env: Mapping[str, str]) -> Part:
        """Return the server's part; it becomes ready even if models fail to load."""
        package = find_package()
        site_packages = package.parent.parent
        libraries = [str(site_packages / "nvidia_pytriton.libs"), find_libpython()]
        return Part(
            name="triton",
            argv=(str(package / "bin" / "tritonserver"), *self.options()),
            env={
                **env,
                # The stub embeds the first Python on PATH.
                "PATH": f"{Path(sys.executable).parent}:{env.get('PATH', os.defpath)}",
                "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            },
            prepare=lambda: self.prepare(package),
            ready=http_ok(self.ports["triton_http"], "/v2/health/ready"),
        )

    def options(self) -> tuple[str, ...]:
        # Triton accepts the token only as an option, which other users of the machine can read.
        restricted = f"{RESTRICTED_APIS}:{CONTROL_HEADER}={self.token}"
        return (
            f"--http-restricted-api={restricted}",
            f"--grpc-restricted-protocol={restricted}",
            f"--model-repository={self.repository}",
            f"--backend-directory={self.backends}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory_prefix}",
            # A stub imports ONNX Runtime first: seconds of CPU, on a busy machine minutes.
            "--backend-config=python,stub-timeout-seconds=600",
            "--model-control-mode=explicit",
            "--load-model=*",
            # A model that fails to load must not prevent the others from being served.
            "--exit-on-error=false",
            "--strict-readiness=false",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=5",
            "--allow-gpu-metrics=false",
            "--http-address=127.0.0.1",
            f"--http-port={self.ports['triton_http']}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.ports['triton_grpc']}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={self.ports['triton_metrics']}",
        )

    def prepare(self, package: Path) -> None:
        """Create the backend directory; delete the shared memory of a killed server."""
        self.repository.mkdir(parents=True, exist_ok=True)
        backend = self.backends / "python"
        backend.mkdir(parents=True, exist_ok=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = package / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.exists():
            raise MissingComponent(
                f"Triton's stub for Python {version}", "Create the environment with Python 3.11."
            )
        # Copied, not linked: Triton changes the mode of the stub's file.
        for source in [*(package / "backends" / "python").iterdir(), stub]:
            _copy_if_changed(source, backend / source.name)
        (backend / stub.name).chmod(0o755)
        for region in SHARED_MEMORY.glob(f"{self.shared_memory_prefix}*"):
            region.unlink(missing_ok=True)


def selftest_part(repository: Path, triton_url: str, token: str, env: Mapping[str, str]) -> Part:
    """Return the self-test as a part that runs in the background and ends the stack on failure.

    It is a separate process, so that the supervisor does not import its dependencies.
    """
    return Part(
        name="selftest",
        argv=(sys.executable, "-m", "embedded.selftest", str(repository), triton_url),
        env={**env, "INTERLOCK_TRITON_TOKEN": token},
        needs=("triton",),
        once=True,
        awaited=False,
    )


def _copy_if_changed(source: Path, target: Path) -> None:
    if source.is_dir():
        return
    new = source.stat()
    if target.exists():
        old = target.stat()
        if (old.st_size, int(old.st_mtime)) == (new.st_size, int(new.st_mtime)):
            return
        # The file of a running stub must not be overwritten.
        target.unlink()
    shutil.copy2(source, target)
