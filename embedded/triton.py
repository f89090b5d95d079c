"""The real Triton server on CPU, from NVIDIA's wheel, with its Python backend.

It runs in explicit mode, where it serves what it is told to; `--load-model=*` makes a restarted
server come back with everything in its repository, with no help from the control plane.
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
# Triton's APIs that change what is served, reach into memory or write files, and the header that
# whoever calls them brings: HTTP takes its name as it is, gRPC behind `triton-grpc-protocol-`.
RESTRICTED_APIS = "model-repository,shared-memory,trace,logging"
CONTROL_HEADER = "interlock-control"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  Where Linux keeps it; nothing of ours is made there.


def find_package() -> Path:
    """The directory of the server inside the wheel."""
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
    """The directory of the shared libpython that the backend's stub needs; None: the system's."""
    directory = sysconfig.get_config_var("LIBDIR")
    if directory and (Path(directory) / LIBPYTHON).exists():
        return str(directory)
    try:
        ctypes.CDLL(LIBPYTHON)
    except OSError:
        package = LIBPYTHON.removesuffix(".so.1.0")
        raise MissingComponent(
            f"{LIBPYTHON} (Triton's Python backend loads it)",
            f"Run `apt-get install {package}`, or make the environment with a Python that was "
            "built with --enable-shared.",
        ) from None
    return None


class Triton:
    """Where one server's files and ports are, and the token that its control APIs ask for."""

    def __init__(self, directory: Path, ports: Mapping[str, int], token: str) -> None:
        self.directory = directory
        self.repository = directory / "repository"
        self.backends = directory / "backends"
        self.ports = ports
        self.token = token
        # A prefix of our own tells our shared memory from that of other servers on the machine.
        digest = hashlib.sha256(str(directory).encode()).hexdigest()[:8]
        self.shared_memory_prefix = f"interlock_{digest}_"

    def part(self, env: Mapping[str, str]) -> Part:
        """The server; ready when it is, whatever became of the models it was asked to load."""
        package = find_package()
        site_packages = package.parent.parent
        libraries = [str(site_packages / "nvidia_pytriton.libs"), find_libpython()]
        return Part(
            name="triton",
            argv=(str(package / "bin" / "tritonserver"), *self.options()),
            env={
                **env,
                # The stub embeds the Python that it finds first.
                "PATH": f"{Path(sys.executable).parent}:{env.get('PATH', os.defpath)}",
                "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            },
            prepare=lambda: self.prepare(package),
            ready=http_ok(self.ports["triton_http"], "/v2/health/ready"),
        )

    def options(self) -> tuple[str, ...]:
        # Triton takes it as an option alone: other users of this machine can read it there.
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
            # A model that does not load must not keep the others from being served.
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
        """Lay out the backend, and clear what a killed server left in shared memory."""
        self.repository.mkdir(parents=True, exist_ok=True)
        backend = self.backends / "python"
        backend.mkdir(parents=True, exist_ok=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = package / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.exists():
            raise MissingComponent(
                f"Triton's stub for Python {version}", "Make the environment with Python 3.11."
            )
        # Copied, never linked: Triton changes the stub's mode, and would change the shared one's.
        for source in [*(package / "backends" / "python").iterdir(), stub]:
            _copy_if_changed(source, backend / source.name)
        (backend / stub.name).chmod(0o755)
        for region in SHARED_MEMORY.glob(f"{self.shared_memory_prefix}*"):
            region.unlink(missing_ok=True)


def selftest_part(repository: Path, triton_url: str, token: str, env: Mapping[str, str]) -> Part:
    """The self-test as a part that runs beside the start, and ends the stack if it fails.

    A process of its own, so that the supervisor need not import what it needs.
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
        # A running stub's file must not be written to.
        target.unlink()
    shutil.copy2(source, target)
