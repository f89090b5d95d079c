"""Connections to Triton that were idle for a while, that are old, or that are encrypted.

Two cases from the field are in tests/field: forgotten_connections, moved_name.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dataplane.config import Transport
from dataplane.triton import Fault, Reply, Triton, TritonError, endpoint, idle
from tests.dataplane.test_triton import PATH
from tests.dataplane.worlds import Upstream, until


@asynccontextmanager
async def triton(**settings):
    client = Triton(asyncio.get_running_loop(), settings=Transport(**settings))
    try:
        yield client
    finally:
        client.close()
        await asyncio.sleep(0)


async def call(triton, address, timeout_s):
    """Return the result of a small request."""
    done = asyncio.get_running_loop().create_future()
    triton.post((address,), b"GET /x HTTP/1.1\r\nhost: t\r\n\r\n", timeout_s, done.set_result)
    return await done


def failures(results):
    return [result for result in results if not isinstance(result, Reply)]


@pytest.fixture
def suspicious(monkeypatch):
    """Trust no connection that was idle."""
    monkeypatch.setattr(idle, "TRUSTED_S", 0.0)


async def burst(triton, address, calls=8, timeout_s=0.3):
    return await asyncio.gather(*(call(triton, address, timeout_s) for _ in range(calls)))


@pytest.mark.usefixtures("suspicious")
async def test_after_one_has_answered_its_siblings_are_used_again(monkeypatch):
    async with Upstream() as upstream, triton() as client:
        await burst(client, upstream.address)
        opened = upstream.connections
        monkeypatch.setattr(idle, "TRUSTED_S", 0.01)
        await asyncio.sleep(0.02)
        monkeypatch.setattr(idle, "TRUSTED_S", 60.0)
        (pool,) = client.endpoints()
        pool._idle._proven_at = float("-inf")
        assert failures(await burst(client, upstream.address)) == []
        assert upstream.connections == opened


async def test_a_slow_answer_costs_no_other_connection():
    async with Upstream() as upstream, triton() as client:
        await burst(client, upstream.address)
        opened = upstream.connections
        upstream.script = ["hang"]
        (lost,) = await burst(client, upstream.address, 1, timeout_s=0.05)
        assert lost.fault is Fault.TIMEOUT
        assert failures(await burst(client, upstream.address, opened - 1)) == []
        assert upstream.connections == opened


@pytest.mark.parametrize("bound", ["connection_idle_s", "connection_age_s"])
async def test_a_connection_is_closed_once_it_was_idle_for_too_long_or_is_too_old(bound):
    async with Upstream() as upstream, triton(**{bound: 0.05}) as client:
        assert failures(await burst(client, upstream.address)) == []
        (pool,) = client.endpoints()
        await until(lambda: pool.open == 0)
        assert failures(await burst(client, upstream.address)) == []


async def test_an_old_connection_is_replaced_under_load_without_a_failure():
    async with Upstream() as upstream, triton(connection_age_s=0.02) as client:
        for _ in range(30):
            assert failures(await burst(client, upstream.address, 4)) == []
            await asyncio.sleep(0.005)
        assert upstream.connections > 8


async def test_the_kernel_probes_each_connection():
    async with Upstream() as upstream, triton() as client:
        await burst(client, upstream.address, 1)
        (pool,) = client.endpoints()
        (connection,) = pool._connections
        probed = connection.transport.get_extra_info("socket")
        assert probed.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert probed.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 60


@pytest.fixture
def certificate(tmp_path):
    """Return the files of a certificate for localhost, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    files[0].write_bytes(built.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@pytest.mark.parametrize("is_known", [True, False])
async def test_an_https_endpoint_is_called_over_tls_and_verified(
    certificate, is_known, monkeypatch
):
    if is_known:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    endpoint._tls.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    upstream = await Upstream().start(ssl=context)
    port = upstream.address.rpartition(":")[2]
    try:
        async with triton() as client:
            (result,) = await burst(client, f"https://localhost:{port}", 1, timeout_s=5.0)
            if is_known:
                assert result.status == 200
            else:
                assert isinstance(result, TritonError)
                assert result.fault is Fault.UNREACHABLE
                assert "certificate" in result.message
    finally:
        endpoint._tls.cache_clear()
        await upstream.stop()


async def test_another_scheme_is_refused():
    async with triton() as client:
        with pytest.raises(ValueError, match="grpc://t:8001: the scheme must be http:// or https"):
            await client.get("grpc://t:8001", PATH, 1.0)
